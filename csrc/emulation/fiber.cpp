// Compiled without instrumentation, also in sanitizer builds: its own bookkeeping would otherwise
// be seen as races between fibers.
#include "emulation/fiber.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>

#include "core/error.hpp"

#ifdef CATAPULT_EMU_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_java_alloc(uintptr_t memory, uintptr_t bytes);
#endif
#ifdef CATAPULT_EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef CATAPULT_EMU_USE_UCONTEXT
// Saves what the System V ABI asks a callee to keep; everything else is dead across the call.
extern "C" void catapult_emulation_switch(void** from, void* to);
asm(R"(
.text
.hidden catapult_emulation_switch
.globl catapult_emulation_switch
.type catapult_emulation_switch, @function
catapult_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size catapult_emulation_switch, .-catapult_emulation_switch
)");
#endif

namespace catapult::emulation {
namespace {

constexpr unsigned char kUnused = 0xA5;
constexpr size_t kMargin = 256;  // still unused at the far end of a healthy stack

}  // namespace

size_t Stacks::bytes_each() {
#ifdef CATAPULT_EMU_ASAN
  return 256 * 1024;
#else
  return 64 * 1024;
#endif
}

Stacks::~Stacks() {
  if (base_) munmap(base_, count_ * bytes_each());
}

void Stacks::require(size_t count) {
  if (count <= count_) return;
  if (base_) munmap(base_, count_ * bytes_each());
  base_ = nullptr;
  count_ = 0;
  void* memory = mmap(nullptr, count * bytes_each(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail_runtime("emulation", "no memory for ", count, " threads");
  base_ = static_cast<unsigned char*>(memory);
  count_ = count;
}

bool Stacks::recycle(size_t index) {
  unsigned char* const stack = at(index);
#ifdef CATAPULT_EMU_ASAN
  __asan_unpoison_memory_region(stack, bytes_each());
#endif
#ifdef CATAPULT_EMU_TSAN
  // Fresh pages read as zero and used ones hold the pattern below the deepest frame.
  size_t first = 0;
  while (first < bytes_each() && (stack[first] == 0 || stack[first] == kUnused)) ++first;
  race_forget(stack + first, bytes_each() - first);
  std::memset(stack + first, kUnused, bytes_each() - first);
#endif
  bool healthy = true;
  for (size_t i = 0; i < kMargin; ++i) healthy = healthy && (stack[i] == 0 || stack[i] == kUnused);
  if (!healthy) std::memset(stack, 0, kMargin);
  return healthy;
}

void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  context.stack_bottom = stack;
  context.stack_bytes = bytes;
  context.asan_fake_stack = nullptr;
#ifdef CATAPULT_EMU_USE_UCONTEXT
  getcontext(&context.machine);
  context.machine.uc_stack.ss_sp = stack;
  context.machine.uc_stack.ss_size = bytes;
  context.machine.uc_link = nullptr;
  makecontext(&context.machine, entry, 0);
#else
  auto top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  void** frame = reinterpret_cast<void**>(top);
  *--frame = nullptr;  // keeps entry() aligned as after a call
  *--frame = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--frame = nullptr;
  context.stack_pointer = frame;
#endif
}

void arrived_first(Context& from) {
#ifdef CATAPULT_EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_bottom, &from.stack_bytes);
#else
  (void)from;
#endif
}

void switch_context(Context& from, Context& to, bool from_ends) {
#ifdef CATAPULT_EMU_TSAN
  __tsan_switch_to_fiber(to.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef CATAPULT_EMU_ASAN
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.asan_fake_stack, to.stack_bottom,
                                 to.stack_bytes);
#else
  (void)from_ends;
#endif
#ifdef CATAPULT_EMU_USE_UCONTEXT
  swapcontext(&from.machine, &to.machine);
#else
  catapult_emulation_switch(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef CATAPULT_EMU_ASAN
  __sanitizer_finish_switch_fiber(from.asan_fake_stack, nullptr, nullptr);
#endif
}

#ifdef CATAPULT_EMU_TSAN
void race_adopt_main(Context& context) { context.tsan_fiber = __tsan_get_current_fiber(); }
void race_create(Context& context) { context.tsan_fiber = __tsan_create_fiber(0); }
void race_destroy(Context& context) {
  if (context.tsan_fiber) __tsan_destroy_fiber(context.tsan_fiber);
  context.tsan_fiber = nullptr;
}
void race_release(void* address) { __tsan_release(address); }
void race_acquire(void* address) { __tsan_acquire(address); }
void race_forget(void* memory, size_t bytes) {
  if (bytes) __tsan_java_alloc(reinterpret_cast<uintptr_t>(memory), bytes);
}
#else
void race_adopt_main(Context&) {}
void race_create(Context&) {}
void race_destroy(Context&) {}
void race_release(void*) {}
void race_acquire(void*) {}
void race_forget(void*, size_t) {}
#endif

}  // namespace catapult::emulation
