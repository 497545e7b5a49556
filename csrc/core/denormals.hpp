// Flushes subnormal results to zero while in scope: loops whose values decay geometrically would
// otherwise slow down a hundredfold below the smallest normal number.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace catapult {

class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // FTZ and DAZ
  ~FlushDenormals() { _mm_setcsr(before_); }
#else
  FlushDenormals() {}  // not trivial, so that the object does not count as unused
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__SSE2__)
  unsigned before_;
#endif
};

}  // namespace catapult
