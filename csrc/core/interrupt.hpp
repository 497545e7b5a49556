// How a long loop learns that the user wants it to end: Ctrl-C in Python.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace catapult {

// Ends an op; what the signal's handler raised is already set where the op was called.
struct Interrupted {};

// Whether a signal asks the calling thread to stop. The binding sets it; without one nothing does.
using SignalCheck = bool (*)();
extern std::atomic<SignalCheck> signal_check;

// Shared by the threads of one call. The thread that called alone may ask Python: it does so ten
// times a second and tells the others.
class Interrupts {
 public:
  void look() {
    if (asked_.load(std::memory_order_relaxed)) throw Interrupted{};
    if (std::this_thread::get_id() != caller_) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    const SignalCheck check = signal_check.load();
    if (check == nullptr || !check()) return;
    asked_.store(true, std::memory_order_relaxed);
    throw Interrupted{};
  }

 private:
  // On lines of their own: the caller's clock must not slow down the others' flag.
  alignas(64) std::atomic<bool> asked_{false};
  alignas(64) std::thread::id caller_ = std::this_thread::get_id();
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// One loop's own counter: looks once in about a million operations, so that short steps pay
// nothing.
class InterruptWatch {
 public:
  InterruptWatch(Interrupts& interrupts, double operations_per_step)
      : interrupts_(interrupts),
        period_(static_cast<int64_t>(std::clamp(1e6 / operations_per_step, 1.0, 1e4))),
        left_(period_) {}

  void step() {
    if (--left_ > 0) return;
    left_ = period_;
    interrupts_.look();
  }

 private:
  Interrupts& interrupts_;
  int64_t period_, left_;
};

}  // namespace catapult
