# SPDX-License-Identifier: Apache-2.0
# What we link and how we compile. A missing library is one line that names its Debian package.
macro(pkmesh_need package debian)
  find_package(${package} ${ARGN} QUIET)
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR "${package} was not found: install ${debian} (scripts/test and scripts/quickstart do)")
  endif()
endmacro()
pkmesh_need(MPI "libopenmpi-dev openmpi-bin" COMPONENTS CXX)
set(Protobuf_USE_STATIC_LIBS ON)
if(Protobuf_LIBRARY_RELEASE MATCHES "\\.so$")  # remembered by an older build folder
  unset(Protobuf_LIBRARY_RELEASE CACHE)
endif()
pkmesh_need(Protobuf "libprotobuf-dev protobuf-compiler")
pkmesh_need(ZLIB "zlib1g-dev")
pkmesh_need(fmt "libfmt-dev")
pkmesh_need(spdlog "libspdlog-dev")
pkmesh_need(CLI11 "libcli11-dev")
pkmesh_need(nlohmann_json "nlohmann-json3-dev")
find_package(PkgConfig REQUIRED)
pkg_check_modules(SENTENCEPIECE REQUIRED IMPORTED_TARGET sentencepiece)
pkg_check_modules(OPENBLAS REQUIRED IMPORTED_TARGET openblas)
find_library(DNNL_LIBRARY dnnl)  # its own CMake package asks for OpenCL, which it does not use
if(NOT DNNL_LIBRARY)
  message(FATAL_ERROR "oneDNN was not found: install libdnnl-dev (scripts/test and scripts/quickstart do)")
endif()
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
find_package(Threads REQUIRED)

add_library(pkmesh_packages INTERFACE)
target_link_libraries(pkmesh_packages INTERFACE
  MPI::MPI_CXX protobuf::libprotobuf fmt::fmt spdlog::spdlog CLI11::CLI11 nlohmann_json::nlohmann_json
  PkgConfig::SENTENCEPIECE PkgConfig::OPENBLAS ${DNNL_LIBRARY} PkgConfig::XXHASH ZLIB::ZLIB Threads::Threads)
# libsentencepiece.so exports an old protobuf of its own, under the names of ours; whichever were found first would
# serve both, and crash. So ours is linked statically, before SentencePiece, and its names stay inside the program.
set_property(TARGET protobuf::libprotobuf APPEND PROPERTY INTERFACE_LINK_LIBRARIES ZLIB::ZLIB PkgConfig::SENTENCEPIECE)
target_link_options(pkmesh_packages INTERFACE LINKER:--version-script=${CMAKE_CURRENT_LIST_DIR}/hide-protobuf.map)
if(PKMESH_OPENMP)
  pkmesh_need(OpenMP "g++")
  target_link_libraries(pkmesh_packages INTERFACE OpenMP::OpenMP_CXX)
endif()

# GCC 12 sees overflows inside fmt 9 that are none (stringop-overflow).
# Nobody reads errno or the floating-point flags after arithmetic, and a loop with `a < b ? c : d` vectorises only then.
set(PKMESH_FLAGS $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wno-sign-compare;-Wno-stringop-overflow;-fno-math-errno;-fno-trapping-math>)
if(NOT PKMESH_OPENMP)
  list(APPEND PKMESH_FLAGS $<$<COMPILE_LANGUAGE:CXX>:-Wno-unknown-pragmas>)
endif()
if(PKMESH_WERROR)
  list(APPEND PKMESH_FLAGS $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND PKMESH_FLAGS $<$<COMPILE_LANGUAGE:CXX>:-march=${PKMESH_MARCH}>)
endif()
if(PKMESH_SANITIZE)
  list(APPEND PKMESH_FLAGS -fsanitize=${PKMESH_SANITIZE} -fno-sanitize-recover=all
    -fno-omit-frame-pointer)
  list(APPEND PKMESH_LINK_FLAGS -fsanitize=${PKMESH_SANITIZE})
endif()

if(PKMESH_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "nvcc was not found: install a CUDA toolkit and put it on PATH, or use the cpu preset")
  endif()
  # Volta to Hopper with CUDA 12, Ampere to Blackwell with CUDA 13; newer devices compile the last one's PTX.
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE PKMESH_NVCC)
  string(REGEX MATCH "release ([0-9]+)" PKMESH_NVCC "${PKMESH_NVCC}")
  set(PKMESH_CUDA_RELEASE "${CMAKE_MATCH_1}")
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    if(PKMESH_CUDA_RELEASE GREATER_EQUAL 13)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
    else()
      set(CMAKE_CUDA_ARCHITECTURES 70-real 80-real 90)
    endif()
  endif()
  if(PKMESH_CUDA_RELEASE GREATER_EQUAL 13 AND "${CMAKE_CUDA_ARCHITECTURES}" MATCHES "(^|;)70")
    message(FATAL_ERROR "CUDA ${PKMESH_CUDA_RELEASE} does not compile for Volta (sm_70): use CUDA 12 (scripts/volta does), "
      "or leave 70 out of CMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES}")
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc >= 12 does
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  find_package(CUDAToolkit REQUIRED)
  # Kernels use constexpr functions of the standard library, such as std::array's operator [].
  # fmt 9 takes nvcc for a compiler without constexpr; nvcc takes View's constrained conversion for one to itself (554).
  list(APPEND PKMESH_FLAGS $<$<COMPILE_LANGUAGE:CUDA>:-DFMT_USE_CONSTEXPR=1;-diag-suppress=554;--expt-relaxed-constexpr>)
  target_link_libraries(pkmesh_packages INTERFACE CUDA::cudart CUDA::cublas)
  find_path(PKMESH_NCCL_INCLUDE nccl.h HINTS ${NCCL_ROOT} ENV NCCL_ROOT ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
  find_library(PKMESH_NCCL_LIBRARY nccl HINTS ${NCCL_ROOT} ENV NCCL_ROOT ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
  mark_as_advanced(PKMESH_NCCL_INCLUDE PKMESH_NCCL_LIBRARY)
  if(PKMESH_NCCL AND PKMESH_NCCL_INCLUDE AND PKMESH_NCCL_LIBRARY)
    target_include_directories(pkmesh_packages SYSTEM INTERFACE ${PKMESH_NCCL_INCLUDE})
    target_link_libraries(pkmesh_packages INTERFACE ${PKMESH_NCCL_LIBRARY})
  elseif(PKMESH_NCCL)
    message(FATAL_ERROR "NCCL was not found: install libnccl-dev, or name its folder with -DNCCL_ROOT=..., or build without "
                        "it (-DPKMESH_NCCL=OFF): ranks on GPUs then talk through host memory")
  endif()
else()  # tests compile the NCCL communicator against the header alone
  find_path(PKMESH_NCCL_INCLUDE nccl.h HINTS ${NCCL_ROOT} ENV NCCL_ROOT ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES include)
  mark_as_advanced(PKMESH_NCCL_INCLUDE)
endif()
