// How lanes are cut into the chunks that a thread keeps in cache.
#pragma once

#include <cstdint>

namespace catapult {

constexpr int64_t kToyScalarGranule = 64;  // lanes of the widest group of vectors
constexpr int64_t kToyScalarChunk = 512;
constexpr int64_t kToyScalarSegment = 32;  // steps between two looks for lanes that have finished

constexpr int64_t toy_scalar_round_up(int64_t lanes) {
  return (lanes + kToyScalarGranule - 1) / kToyScalarGranule * kToyScalarGranule;
}

// Lanes per chunk: small problems are shared out over the threads.
constexpr int64_t toy_scalar_chunk(int64_t lanes, int64_t threads) {
  const int64_t share = toy_scalar_round_up((lanes + threads - 1) / threads);
  return share < kToyScalarChunk ? share : kToyScalarChunk;
}

static_assert(toy_scalar_chunk(1, 2) == 64 && toy_scalar_chunk(300, 2) == 192, "");
static_assert(toy_scalar_chunk(1000000, 2) == kToyScalarChunk, "");

}  // namespace catapult
