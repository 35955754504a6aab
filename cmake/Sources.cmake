# SPDX-License-Identifier: Apache-2.0
# pkmesh_sources(a.cpp b.cpp ...)  adds files of this folder to the program.
function(pkmesh_sources)
  list(TRANSFORM ARGN PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  target_sources(pkmesh_objects PRIVATE ${ARGN})
endfunction()

# pkmesh_ops(gelu linear ...)  adds x.cpp and x_cpu.cpp of each op, the latter once per level of instructions, and
# x_cuda.cu where it exists and CUDA is on.
function(pkmesh_ops)
  foreach(op IN LISTS ARGN)
    pkmesh_sources(${op}.cpp ${op}_cpu.cpp)
    target_sources(pkmesh_avx512 PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/${op}_cpu.cpp)
    if(PKMESH_CUDA AND EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${op}_cuda.cu)
      pkmesh_sources(${op}_cuda.cu)
    endif()
  endforeach()
endfunction()

# pkmesh_test(name SOURCES a_test.cpp ... [RANKS 1 2 3 4] [LABELS slow] [EACH_CPU])
# One GoogleTest program. With EACH_CPU it also runs, as name.avx2, with the kernels for CPUs without AVX-512. With the label cuda it is reported as skipped, not as passed, where there is no GPU. With RANKS it runs under mpirun once per rank count; a test that gets fewer ranks fails.
function(pkmesh_test name)
  cmake_parse_arguments(TEST "EACH_CPU" "" "SOURCES;RANKS;LABELS" ${ARGN})
  add_executable(${name} ${TEST_SOURCES})
  target_link_libraries(${name} PRIVATE pkmesh_objects GTest::gtest)
  if(NOT TEST_RANKS)
    target_link_libraries(${name} PRIVATE GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT 1200 LABELS "${TEST_LABELS}" ENVIRONMENT "${PKMESH_TEST_ENV}")
    if("cuda" IN_LIST TEST_LABELS)
      set_tests_properties(${name} PROPERTIES SKIP_REGULAR_EXPRESSION "SKIPPED")
    endif()
  endif()
  if(TEST_EACH_CPU)
    add_test(NAME ${name}.avx2 COMMAND ${name})
    set_tests_properties(${name}.avx2 PROPERTIES TIMEOUT 1200 LABELS "${TEST_LABELS}"
      ENVIRONMENT "PKMESH_CPU=avx2;${PKMESH_TEST_ENV}")
  endif()
  foreach(ranks IN LISTS TEST_RANKS)
    add_test(NAME ${name}.${ranks} COMMAND ${MPIEXEC_EXECUTABLE} -n ${ranks} $<TARGET_FILE:${name}>)
    set_tests_properties(${name}.${ranks} PROPERTIES TIMEOUT 1200 LABELS "mpi;${TEST_LABELS}" PROCESSORS 2
      ENVIRONMENT "PKMESH_TEST_RANKS=${ranks};${PKMESH_TEST_ENV}")
    if("cuda" IN_LIST TEST_LABELS)
      set_tests_properties(${name}.${ranks} PROPERTIES SKIP_REGULAR_EXPRESSION "SKIPPED")
    endif()
  endforeach()
endfunction()

# pkmesh_protos(a.proto b.proto ...)  generates "folder/a.pb.h" for the program, from schemas of this folder; call it once.
# A library of its own: generated code is not held to our warnings, and rules of one folder are unseen in another.
function(pkmesh_protos)
  set(generated ${PROJECT_BINARY_DIR}/generated)
  file(RELATIVE_PATH folder ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  file(MAKE_DIRECTORY ${generated})
  foreach(proto IN LISTS ARGN)
    string(REGEX REPLACE "\\.proto$" "" stem ${generated}/${folder}/${proto})
    add_custom_command(OUTPUT ${stem}.pb.cc ${stem}.pb.h DEPENDS ${proto} VERBATIM
      COMMAND protobuf::protoc --cpp_out=${generated} -I ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/${proto})
    list(APPEND sources ${stem}.pb.cc)
  endforeach()
  add_library(pkmesh_protos STATIC ${sources})
  target_include_directories(pkmesh_protos SYSTEM PUBLIC ${generated})
  target_link_libraries(pkmesh_protos PUBLIC protobuf::libprotobuf)
  if(PKMESH_SANITIZE)
    target_compile_options(pkmesh_protos PRIVATE -fsanitize=${PKMESH_SANITIZE})
  endif()
  target_link_libraries(pkmesh_objects PUBLIC pkmesh_protos)
endfunction()
