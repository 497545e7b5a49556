// Runs a function of scalars on every active lane of a warp.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "machine.hpp"
#include "opcodes.hpp"

namespace ptx {

template <typename T>
using Stored = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <typename T>
inline T unpack(Stored<T> bits) {
  if constexpr (sizeof(T) == sizeof(Stored<T>)) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
  } else {
    return static_cast<T>(bits);
  }
}

template <typename T>
inline Stored<T> pack(T value) {
  if constexpr (sizeof(T) == sizeof(Stored<T>)) {
    Stored<T> bits;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
  } else {
    return static_cast<std::make_unsigned_t<T>>(value);
  }
}

template <typename T>
inline T lane_value(Warp& warp, uint32_t slot, int lane) {
  if constexpr (std::is_same_v<T, bool>) {
    return warp.predicate(slot) >> lane & 1;
  } else {
    return unpack<T>(warp.at<Stored<T>>(slot)[lane]);
  }
}

template <typename T>
constexpr Type type_of() {
  return {std::is_same_v<T, bool> ? uint8_t(0) : uint8_t(sizeof(Stored<T>))};
}

template <typename Op, typename D, typename... A, size_t... I>
inline void on_lanes(Warp& warp, const Instr& instr, Mask mask, std::index_sequence<I...>) {
  if constexpr (std::is_same_v<D, bool>) {
    Mask result = 0;
    for (int l = 0; l < kLanes; ++l)
      result |= Mask(Op::of(lane_value<A>(warp, instr.slot[I + 1], l)...)) << l;
    Mask& d = warp.predicate(instr.slot[0]);
    d = (d & ~mask) | (result & mask);
  } else {
    Stored<D>* d = warp.at<Stored<D>>(instr.slot[0]);
    Stored<D> result[kLanes];
    for (int l = 0; l < kLanes; ++l)
      result[l] = pack<D>(Op::of(lane_value<A>(warp, instr.slot[I + 1], l)...));
    for (int l = 0; l < kLanes; ++l)
      if (mask >> l & 1) d[l] = result[l];
  }
}

template <typename Op, typename D, typename... A>
void lanes(Warp& warp, const Instr& instr, Mask mask) {
  on_lanes<Op, D, A...>(warp, instr, mask, std::index_sequence_for<A...>{});
}

template <typename Op, typename D, typename... A>
Opcode opcode() {
  return {&lanes<Op, D, A...>, {type_of<D>(), type_of<A>()...}};
}

}  // namespace ptx
