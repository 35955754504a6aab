# SPDX-License-Identifier: Apache-2.0
# pkmesh_sources(a.cpp b.cpp ...)  adds files of this folder to the program.
function(pkmesh_sources)
  list(TRANSFORM ARGN PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  target_sources(pkmesh_objects PRIVATE ${ARGN})
endfunction()

# pkmesh_ops(gelu linear ...)  adds x.cpp and x_cpu.cpp of each op, and x_cuda.cu where it exists and CUDA is on.
function(pkmesh_ops)
  foreach(op IN LISTS ARGN)
    pkmesh_sources(${op}.cpp ${op}_cpu.cpp)
    if(PKMESH_CUDA AND EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${op}_cuda.cu)
      pkmesh_sources(${op}_cuda.cu)
    endif()
  endforeach()
endfunction()

# pkmesh_test(name SOURCES a_test.cpp ... [RANKS 1 2 3 4] [LABELS slow])
# One GoogleTest program. With RANKS it runs under mpirun once per rank count; a test that gets fewer ranks fails.
function(pkmesh_test name)
  cmake_parse_arguments(TEST "" "" "SOURCES;RANKS;LABELS" ${ARGN})
  add_executable(${name} ${TEST_SOURCES})
  target_link_libraries(${name} PRIVATE pkmesh_objects GTest::gtest)
  if(NOT TEST_RANKS)
    target_link_libraries(${name} PRIVATE GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT 1200 LABELS "${TEST_LABELS}" ENVIRONMENT "${PKMESH_TEST_ENV}")
  endif()
  foreach(ranks IN LISTS TEST_RANKS)
    add_test(NAME ${name}.${ranks} COMMAND ${MPIEXEC_EXECUTABLE} -n ${ranks} $<TARGET_FILE:${name}>)
    set_tests_properties(${name}.${ranks} PROPERTIES TIMEOUT 1200 LABELS "mpi;${TEST_LABELS}" PROCESSORS 2
      ENVIRONMENT "PKMESH_TEST_RANKS=${ranks};${PKMESH_TEST_ENV}")
  endforeach()
endfunction()
