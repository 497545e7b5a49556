// What every animal of the zoo needs: launching without a Python in sight, and a verdict.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/cuda/launch.cuh"

namespace zoo {

using catapult::Exec;

inline Exec exec() { return {0, 0, 1}; }

template <typename Params>
void run(void (*kernel)(Params), dim3 grid, dim3 block, const Params& params, size_t shared = 0,
         bool cooperative = false) {
  catapult::device::launch(kernel, {"zoo", exec(), grid, block, shared, cooperative}, params);
}

// Numbers that are exact in float and differ from place to place.
inline std::vector<float> numbers(int count, int seed = 1) {
  std::vector<float> v(count);
  for (int i = 0; i < count; ++i) v[i] = static_cast<float>((i * 37 + seed * 11) % 101 - 50) / 8.0f;
  return v;
}

// True where the kernel computed what it should.
using Animal = std::function<bool()>;
inline std::map<std::string, Animal>& animals() {
  static std::map<std::string, Animal> all;
  return all;
}
struct Register {
  Register(const char* name, Animal animal) { animals()[name] = std::move(animal); }
};

}  // namespace zoo

#define ZOO(name)                                                \
  static bool zoo_##name();                                      \
  static const zoo::Register register_##name(#name, zoo_##name); \
  static bool zoo_##name()
