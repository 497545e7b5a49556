// The asynchronous copies of one thread, in groups; no allocation, as fibers must not own memory.
#pragma once

#include <array>

#include "core/error.hpp"
#include "emulation/scheduler.hpp"

namespace catapult::emulation {

class AsyncQueue {
 public:
  AsyncQueue() {}  // leaves the entries alone: a launch would spend its time on zeroing them
  void clear() { first_ = last_ = group_ = 0; }

  void push(const AsyncCopy& copy) {
    if (last_ - first_ == kMost) fail_runtime("emulation", "more than 128 copies in flight");
    entries_[last_++ % kMost] = {copy, group_};
  }

  void commit() { ++group_; }

  // The oldest copy, unless it belongs to one of the newest `keep` committed groups.
  bool pop(int keep, AsyncCopy* copy) {
    if (first_ == last_) return false;
    const Entry& entry = entries_[first_ % kMost];
    if (entry.group + static_cast<unsigned>(keep) >= group_) return false;
    *copy = entry.copy;
    ++first_;
    return true;
  }

 private:
  static constexpr unsigned kMost = 128;
  struct Entry {
    AsyncCopy copy;
    unsigned group;
  };
  std::array<Entry, kMost> entries_;
  unsigned first_ = 0, last_ = 0, group_ = 0;
};

}  // namespace catapult::emulation
