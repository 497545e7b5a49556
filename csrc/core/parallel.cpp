#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>

#include "core/interrupt.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define CATAPULT_HAVE_ATFORK 1
#endif

namespace catapult {

std::atomic<SignalCheck> signal_check{nullptr};

namespace {

std::atomic<bool> forked_child{false};

#ifdef CATAPULT_HAVE_ATFORK
const int at_fork_registered =
    pthread_atfork(nullptr, nullptr, [] { forked_child.store(true, std::memory_order_relaxed); });
#endif

}  // namespace

int usable_threads(int wanted, int64_t items) {
#ifdef _OPENMP
#ifdef CATAPULT_HAVE_ATFORK
  (void)at_fork_registered;
#endif
  if (forked_child.load(std::memory_order_relaxed) || omp_in_parallel()) return 1;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(wanted, items)));
#else
  (void)wanted;
  (void)items;
  return 1;
#endif
}

}  // namespace catapult
