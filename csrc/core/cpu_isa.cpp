#include "core/cpu_isa.hpp"

#include <atomic>
#include <cstdlib>

#include "core/error.hpp"

namespace catapult {
namespace {

bool supported(Isa isa) {
#ifdef CATAPULT_X86_ISAS
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

Isa parse(const std::string& name) {
  std::string usable;
  for (Isa isa : usable_isas()) {
    if (name == isa_name(isa)) return isa;
    usable += std::string(usable.empty() ? "" : ", ") + isa_name(isa);
  }
  check(false, "force_isa", "CATAPULT_FORCE_ISA must be one of (", usable, ") here, got '", name,
        "'");
  return Isa::kBaseline;
}

Isa best() { return usable_isas().back(); }

std::atomic<int>& current() {
  static std::atomic<int> isa{[] {
    const char* forced = std::getenv("CATAPULT_FORCE_ISA");
    return static_cast<int>(forced && *forced ? parse(forced) : best());
  }()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

Isa active_isa() { return static_cast<Isa>(current().load(std::memory_order_relaxed)); }

std::vector<Isa> usable_isas() {
  std::vector<Isa> usable;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
    if (supported(isa)) usable.push_back(isa);
  return usable;
}

bool has_int16_dot_products() {
#ifdef CATAPULT_X86_ISAS
  return active_isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

void force_isa(const std::string& name) {
  current().store(static_cast<int>(name.empty() ? best() : parse(name)));
}

}  // namespace catapult
