// One CUDA thread as a fiber: its own stack, switched by hand. Knows the sanitizers, not CUDA.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__) || defined(CATAPULT_EMU_UCONTEXT)
#define CATAPULT_EMU_USE_UCONTEXT 1
#include <ucontext.h>
#endif

namespace catapult::emulation {

struct Context {
#ifdef CATAPULT_EMU_USE_UCONTEXT
  ucontext_t machine;
#else
  void* stack_pointer = nullptr;
#endif
  void* tsan_fiber = nullptr;
  void* asan_fake_stack = nullptr;
  const void* stack_bottom = nullptr;  // of the side that is switched to
  size_t stack_bytes = 0;
};

// A pool of equal stacks in one mapping. A pattern at rest tells how deep each one was used.
class Stacks {
 public:
  ~Stacks();
  void require(size_t count);
  unsigned char* at(size_t index) const { return base_ + index * bytes_each(); }
  static size_t bytes_each();
  // After a thread ended or was abandoned: forget what the sanitizers know of its stack. Returns
  // false where the thread ran over the end.
  bool recycle(size_t index);

 private:
  unsigned char* base_ = nullptr;
  size_t count_ = 0;
};

// Prepares `context` to start entry() on the given stack at the first switch to it.
void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)());
// A fiber must call this first, with the context that it was resumed from.
void arrived_first(Context& from);
void switch_context(Context& from, Context& to, bool from_ends);

// Race detection (no-ops without ThreadSanitizer): a main context for the launching thread, a fresh
// one per CUDA thread and block, and happens-before edges through named addresses.
void race_adopt_main(Context& context);
void race_create(Context& context);
void race_destroy(Context& context);
void race_release(void* address);
void race_acquire(void* address);
void race_forget(void* memory, size_t bytes);  // past accesses to this memory do not count

}  // namespace catapult::emulation
