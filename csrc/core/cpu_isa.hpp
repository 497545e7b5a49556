// Which of the compiled instruction sets is used. Chosen at load; CATAPULT_FORCE_ISA or
// force_isa() override it.
#pragma once

#include <string>
#include <vector>

namespace catapult {

enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

const char* isa_name(Isa isa);
Isa active_isa();
std::vector<Isa> usable_isas();           // compiled in and supported by this processor
void force_isa(const std::string& name);  // "" returns to the automatic choice

// Whether the active instruction set comes with vpdpwssd on 512 bits (AVX512-VNNI), which
// multiplies twice as many 16-bit integers as an FMA does float32.
bool has_int16_dot_products();

// Picks one of the three tables that <op>_simd.cpp exports; other processors have the baseline
// only.
#ifdef CATAPULT_X86_ISAS
#define CATAPULT_SELECT_ISA(op)                                       \
  (::catapult::active_isa() == ::catapult::Isa::kAvx512 ? op##_avx512 \
   : ::catapult::active_isa() == ::catapult::Isa::kAvx2 ? op##_avx2   \
                                                        : op##_baseline)
#define CATAPULT_DECLARE_ISA_TABLES(Table, op) \
  extern const Table op##_baseline;            \
  extern const Table op##_avx2;                \
  extern const Table op##_avx512
#else
#define CATAPULT_SELECT_ISA(op) op##_baseline
#define CATAPULT_DECLARE_ISA_TABLES(Table, op) extern const Table op##_baseline
#endif

}  // namespace catapult
