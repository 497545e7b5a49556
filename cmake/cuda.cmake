# CATAPULT_CUDA=AUTO|ON|OFF. AUTO falls back to the CPU module with one line that says why.
set(CATAPULT_CUDA "AUTO" CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set(CATAPULT_CUDA_ENABLED FALSE)
set(CATAPULT_CUDA_ARCH_TEXT "")

if(NOT CATAPULT_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  set(_why "")
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    # Real code for sm_80 and sm_90; the PTX of 90 serves newer devices too.
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90")
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE) # a search that found nothing is no reason not to look again
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(_why "no CUDA compiler found")
  else()
    # check_language only looks for nvcc; a kernel that compiles and links proves that it works.
    set(_probe "${CMAKE_BINARY_DIR}/cuda_probe")
    file(WRITE "${_probe}/probe.cu"
         "#include <cuda_runtime.h>\n__global__ void k(int* p) { *p = 1; }\n"
         "int main() { k<<<1, 1>>>(nullptr); return cudaGetLastError() == cudaSuccess; }\n")
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" -std=c++17 -o "${_probe}/probe" "${_probe}/probe.cu"
                    RESULT_VARIABLE _failed OUTPUT_VARIABLE _out ERROR_VARIABLE _out)
    if(_failed)
      set(_why "${CMAKE_CUDA_COMPILER} cannot compile a test kernel")
    endif()
  endif()
  if(_why STREQUAL "")
    set(CATAPULT_CUDA_ENABLED TRUE)
  elseif(CATAPULT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "CATAPULT_CUDA=ON, but ${_why}\n${_out}")
  else()
    message(STATUS "catapult_ext: building for the CPU only (${_why})")
  endif()
endif()

if(CATAPULT_CUDA_ENABLED)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  string(REPLACE ";" " " CATAPULT_CUDA_ARCH_TEXT "${CMAKE_CUDA_ARCHITECTURES}")
endif()
