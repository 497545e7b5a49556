// Loops over CPU threads. Work is split by index, so results do not depend on the thread count
// unless the op's own arithmetic does.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/interrupt.hpp"

namespace catapult {

// Threads to use for `items` pieces of work; 1 in a forked child, where OpenMP's pool is gone.
int usable_threads(int wanted, int64_t items);

// Threads worth waking for this many operations: a team costs a few microseconds, more where the
// processor is shared.
inline int threads_for(double operations, int threads) {
  constexpr double kOperationsPerThread = 5e5;
  const double wanted = operations / kOperationsPerThread;
  return wanted < 2.0 ? 1 : wanted < threads ? static_cast<int>(wanted) : threads;
}

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Which of `team` pieces of scratch memory belongs to this thread: the only one of a call on one
// thread, whichever thread of an outer loop made that call.
inline int piece_index(int team) { return team <= 1 ? 0 : thread_index(); }

inline bool in_team() {
#ifdef _OPENMP
  return omp_in_parallel() != 0;
#else
  return false;
#endif
}

// f(index) for 0 <= index < items, assigned one by one. An exception in f stops the loop and is
// thrown again here; so does a signal, which is looked for between two items.
template <typename F>
void parallel_for(int64_t items, int threads, const F& f) {
  const int team = usable_threads(threads, items);
  if (items <= 1 || (team <= 1 && in_team())) {  // the loop around this one looks
    for (int64_t i = 0; i < items; ++i) f(i);
    return;
  }
  Interrupts interrupts;
  if (team <= 1) {
    for (int64_t i = 0; i < items; ++i) {
      interrupts.look();
      f(i);
    }
    return;
  }
#ifdef _OPENMP
  std::exception_ptr error;
  std::atomic<bool> failed{false};
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
  for (int64_t i = 0; i < items; ++i) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      interrupts.look();
      f(i);
    } catch (...) {
#pragma omp critical(catapult_parallel_error)
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
#endif
}

}  // namespace catapult
