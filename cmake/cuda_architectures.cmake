# Which GPUs the CUDA code is compiled for, where CMAKE_CUDA_ARCHITECTURES does not say it.
set(CATAPULT_CUDA_ARCHITECTURES "found" CACHE STRING
    "found: those of the GPUs of this machine; all: what a wheel holds; or a list as of CMAKE_CUDA_ARCHITECTURES")

# The PTX of the last one serves newer devices.
function(catapult_cuda_architectures result)
  set(chosen "${CATAPULT_CUDA_ARCHITECTURES}")
  if(chosen STREQUAL "all")
    set(chosen "80-real;90-real;100-real;120")
  elseif(chosen STREQUAL "found")
    set(chosen "80-real;90")
    find_program(CATAPULT_NVIDIA_SMI nvidia-smi)
    if(CATAPULT_NVIDIA_SMI)
      execute_process(COMMAND "${CATAPULT_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
                      RESULT_VARIABLE failed OUTPUT_VARIABLE said ERROR_QUIET)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${said}")
      if(failed EQUAL 0 AND capabilities)
        list(REMOVE_DUPLICATES capabilities)
        string(REPLACE "." "" chosen "${capabilities}")
      endif()
    endif()
  endif()
  set(${result} "${chosen}" PARENT_SCOPE)
endfunction()
