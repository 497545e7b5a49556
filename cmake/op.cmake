# catapult_warnings(target) and catapult_add_op(name [SIMD] [CUDA]): every op has the same file roles.
function(catapult_warnings target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;$<$<BOOL:${CATAPULT_WERROR}>:-Werror>>")
  if(CATAPULT_WERROR)
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>")
  endif()
endfunction()

# csrc/ops/<name>/<name>.cpp and <name>_cpu.cpp always; <name>_simd.cpp with SIMD;
# <name>_cuda.cu with CUDA in a CUDA build, otherwise ops/no_cuda.cpp holds its throwing entry.
function(catapult_add_op name)
  cmake_parse_arguments(OP "SIMD;CUDA" "" "" ${ARGN})
  set(folder "${PROJECT_SOURCE_DIR}/csrc/ops/${name}")
  target_sources(catapult_core PRIVATE "${folder}/${name}.cpp" "${folder}/${name}_cpu.cpp")
  if(OP_SIMD)
    catapult_add_simd_source(catapult_core "${folder}/${name}_simd.cpp")
  endif()
  if(OP_CUDA AND CATAPULT_CUDA_ENABLED)
    string(TOUPPER "${name}" upper)
    target_sources(catapult_core PRIVATE "${folder}/${name}_cuda.cu")
    target_compile_definitions(catapult_core PRIVATE CATAPULT_CUDA_${upper}=1)
  endif()
  set(CATAPULT_BINDINGS ${CATAPULT_BINDINGS} "${PROJECT_SOURCE_DIR}/csrc/bindings/bind_${name}.cpp"
      PARENT_SCOPE)
endfunction()
