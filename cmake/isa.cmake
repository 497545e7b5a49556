# One SIMD source, compiled once per instruction set with the flags on those objects only.
# Everything in such a file has internal linkage except its table CATAPULT_ISA_SYMBOL(<op>),
# or the linker may keep the AVX-512 copy of an inline function for everybody.
set(CATAPULT_ISAS baseline)
set(CATAPULT_ISA_FLAGS_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND CATAPULT_ISAS avx2 avx512)
  set(CATAPULT_ISA_FLAGS_avx2 -mavx2 -mfma)
  set(CATAPULT_ISA_FLAGS_avx512 -mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma
      -mprefer-vector-width=512)
  add_compile_definitions(CATAPULT_X86_ISAS=1)
endif()

# Contraction to FMA is wanted here, and errno or trapping maths would block vectorisation.
set(CATAPULT_SIMD_FLAGS -ffp-contract=fast -fno-math-errno -fno-trapping-math)

function(catapult_add_simd_source target source)
  get_filename_component(stem "${source}" NAME_WE)
  foreach(isa IN LISTS CATAPULT_ISAS)
    set(object "${stem}_${isa}")
    add_library(${object} OBJECT "${source}")
    target_include_directories(${object} PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
    target_compile_definitions(${object} PRIVATE CATAPULT_ISA=${isa})
    target_compile_options(${object} PRIVATE ${CATAPULT_SIMD_FLAGS} ${CATAPULT_ISA_FLAGS_${isa}})
    catapult_warnings(${object})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${object}>)
  endforeach()
endfunction()
