// What device code calls: barriers, exchanges within a warp, copies. Compiled without
// instrumentation in sanitizer builds, as fiber.cpp.
#include <cstring>

#include "core/error.hpp"
#include "emulation/grid.hpp"
#include "emulation/statics.hpp"

namespace catapult::emulation {
namespace {

// memcpy would be seen by ThreadSanitizer even from here, as it replaces the function.
void copy_unseen(void* to, const void* from, size_t bytes) {
  auto* target = static_cast<volatile unsigned char*>(to);
  auto* source = static_cast<const volatile unsigned char*>(from);
  for (size_t i = 0; i < bytes; ++i) target[i] = source[i];
}

Warp& my_warp() { return g_grid->block->warps[g_grid->thread->at.warp]; }

void park(Wait wait, const char* what, Place place) {
  Thread& me = *g_grid->thread;
  me.wait = wait;
  me.what = what;
  me.place = place;
  switch_context(me.context, g_grid->main, false);
}

}  // namespace

void release_block_barrier(Block& block) {
  block.result = block.gathering;
  block.gathering = {0, 1, 0};
  block.arrived = 0;
  ++block.generation;
}

bool settle(WarpBarrier& barrier, unsigned alive) {
  if (!barrier.gathering || barrier.arrived != (barrier.mask & alive)) return false;
  barrier.gathering = false;
  barrier.readers = static_cast<unsigned>(__builtin_popcount(barrier.arrived));
  return true;
}

void* dynamic_shared() { return g_grid->block->dynamic.get(); }

BlockVote sync_block(int value, Place place) {
  Block& block = *g_grid->block;
  Thread& me = *g_grid->thread;
  if (block.arrived == 0) block.place = place;
  if (block.place.line != place.line || std::strcmp(block.place.file, place.file) != 0)
    device_fail("divergent barrier: other threads of the block wait at " + to_text(block.place),
                place);
  me.generation = block.generation;
  race_release(&block.race_keys[me.generation & 1]);
  block.gathering.sum += value != 0;
  block.gathering.all &= value != 0;
  block.gathering.any |= value != 0;
  if (++block.arrived == block.alive) {
    release_block_barrier(block);
  } else {
    park(Wait::kBlock, "__syncthreads", place);
  }
  race_acquire(&block.race_keys[me.generation & 1]);
  return block.result;
}

void sync_grid(Place place) {
  if (!g_grid->config->cooperative)
    device_fail("grid barrier in a launch that is not cooperative", place);
  Thread& me = *g_grid->thread;
  me.generation = g_grid->generation;
  race_release(&g_grid->race_keys[me.generation & 1]);
  // A thread that has ended is still counted: on a device the others would wait for ever.
  if (++g_grid->arrived == g_grid->threads) {
    g_grid->arrived = 0;
    ++g_grid->generation;
  } else {
    park(Wait::kGrid, "grid_sync", place);
  }
  race_acquire(&g_grid->race_keys[me.generation & 1]);
}

void yield() { park(Wait::kYield, "a polling loop", {"", 0}); }

WarpExchange::WarpExchange(const char* what, unsigned mask, const void* value, size_t bytes,
                           Place place, bool orders_memory)
    : barrier_(nullptr) {
  Thread& me = *g_grid->thread;
  Warp& warp = my_warp();
  const unsigned bit = 1u << me.at.lane;
  if (!(mask & bit)) device_fail(std::string(what) + " by a lane that its mask leaves out", place);
  WarpBarrier* barrier = nullptr;
  for (WarpBarrier& candidate : warp.barriers)
    if (candidate.gathering && candidate.mask == mask) barrier = &candidate;
  if (barrier) {
    // Barriers of two branches may meet; a value exchanged between two lines is a mistake.
    const bool same = std::strcmp(barrier->what, what) == 0 &&
                      (orders_memory || (barrier->place.line == place.line &&
                                         std::strcmp(barrier->place.file, place.file) == 0));
    if (!same)
      device_fail(std::string(what) + " while other lanes of the warp are at " + barrier->what +
                      " (" + to_text(barrier->place) + ")",
                  place);
  } else {
    for (WarpBarrier& candidate : warp.barriers)
      if (candidate.free) barrier = &candidate;
    if (!barrier) barrier = &warp.barriers.emplace_back();
    barrier->free = false;
    barrier->gathering = true;
    barrier->what = what;
    barrier->place = place;
    barrier->mask = mask;
    barrier->arrived = 0;
  }
  barrier_ = barrier;
  barrier->arrived |= bit;
  copy_unseen(barrier->values[me.at.lane], value, bytes);
  if (orders_memory) race_release(&barrier->race_key);
  me.barrier = barrier;
  if (!settle(*barrier, warp.alive)) park(Wait::kWarp, what, place);
  if (orders_memory) race_acquire(&barrier->race_key);
}

WarpExchange::~WarpExchange() {
  auto* barrier = static_cast<WarpBarrier*>(barrier_);
  if (--barrier->readers == 0) barrier->free = true;
}

unsigned WarpExchange::participants() const {
  return static_cast<const WarpBarrier*>(barrier_)->arrived;
}

void WarpExchange::read(unsigned lane, void* value, size_t bytes) const {
  const auto* barrier = static_cast<const WarpBarrier*>(barrier_);
  if (lane < 32 && (barrier->arrived >> lane & 1)) {
    copy_unseen(value, barrier->values[lane], bytes);
  } else {
    for (size_t i = 0; i < bytes; ++i) static_cast<volatile unsigned char*>(value)[i] = kPoison;
  }
}

unsigned active_lanes() { return my_warp().alive; }

void device_fail(const std::string& text, Place place) {
  fail_runtime(g_grid->config->op, text, " (", to_text(place), ", ", name_of(*g_grid->thread), ")");
}

void check_aligned(const void* address, size_t bytes, Place place) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    device_fail("misaligned access of " + std::to_string(bytes) + " bytes", place);
}

void async_copy(const AsyncCopy& copy) { g_grid->thread->copies.push(copy); }
void async_commit() { g_grid->thread->copies.commit(); }
bool async_next(int keep, AsyncCopy* copy) { return g_grid->thread->copies.pop(keep, copy); }

}  // namespace catapult::emulation
