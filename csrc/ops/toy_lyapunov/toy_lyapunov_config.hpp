// How steps and cases are cut. None of it changes a result.
#pragma once

#include <cstdint>

namespace catapult {

constexpr int64_t kToyLyapunovSegment = 64;  // steps whose draws a thread holds at a time; even
constexpr int64_t kToyLyapunovRescale = 8;   // steps between two rescalings of a state
constexpr int64_t kToyLyapunovGroup = 4;     // cases in flight: a step is a chain of one FMA
constexpr int64_t kToyLyapunovChunk = 512;   // cases that share the draws of a thread

static_assert(kToyLyapunovSegment % kToyLyapunovRescale == 0, "");
static_assert(kToyLyapunovChunk % kToyLyapunovGroup == 0, "");

}  // namespace catapult
