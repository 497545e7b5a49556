// Compiled without instrumentation in sanitizer builds, as fiber.cpp.
#include "emulation/scheduler.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <random>

#include "core/error.hpp"
#include "emulation/block.hpp"
#include "emulation/runtime_api.hpp"
#include "emulation/statics.hpp"

namespace catapult::emulation {

const Coordinates* g_here = nullptr;

namespace {

// The grid that runs: one at a time, under launch_lock.
struct Grid {
  const GridConfig* config = nullptr;
  const std::function<void()>* kernel = nullptr;
  Order order = Order::kForward;
  std::mt19937 random{1};
  Context main;
  Block* block = nullptr;
  Thread* thread = nullptr;
  size_t threads = 0, arrived = 0;
  uint64_t generation = 0;
  std::exception_ptr error;
  char start_key = 0, end_key = 0, race_keys[2] = {};
};

std::mutex launch_lock;
Grid* g = nullptr;
Stacks stacks;

Warp& my_warp() { return g->block->warps[g->thread->at.warp]; }

void park(Wait wait, const char* what, Place place) {
  Thread& me = *g->thread;
  me.wait = wait;
  me.what = what;
  me.place = place;
  switch_context(me.context, g->main, false);
}

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

// An exited thread no longer counts at barriers of its block and warp, as on current devices.
void leave() {
  Thread& me = *g->thread;
  Block& block = *g->block;
  Warp& warp = my_warp();
  me.wait = Wait::kDone;
  warp.alive &= ~(1u << me.at.lane);
  --block.alive;
  if (block.alive && block.arrived == block.alive) release_block_barrier(block);
  for (WarpBarrier& barrier : warp.barriers) settle(barrier, warp.alive);
}

void thread_entry() {
  arrived_first(g->main);
  race_acquire(&g->start_key);
  try {
    (*g->kernel)();
  } catch (...) {
    g->error = std::current_exception();
  }
  race_release(&g->end_key);
  leave();
  switch_context(g->thread->context, g->main, true);
  std::abort();
}

void resume(Block& block, Thread& thread) {
  thread.wait = Wait::kReady;
  g->block = &block;
  g->thread = &thread;
  g_here = &thread.at;
  switch_context(g->main, thread.context, false);
}

std::vector<unsigned> permuted(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (g->order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (g->order == Order::kRandom) std::shuffle(order.begin(), order.end(), g->random);
  return order;
}

// One warp runs as far as it can before the next one starts: a missing block barrier then shows.
bool run_block(Block& block) {
  const std::vector<unsigned> lanes = permuted(32);
  const std::vector<unsigned> warps = permuted(static_cast<unsigned>(block.warps.size()));
  bool ever = false;
  for (bool progress = true; progress && block.alive;) {
    progress = false;
    for (unsigned warp : warps) {
      for (bool any = true; any;) {
        any = false;
        for (unsigned lane : lanes) {
          const size_t index = warp * 32 + lane;
          if (index >= block.threads.size()) continue;
          if (!can_run(block, block.threads[index], g->generation)) continue;
          resume(block, block.threads[index]);
          if (g->error) return true;
          any = progress = ever = true;
        }
      }
    }
  }
  return ever;
}

void start_block(Block& block, unsigned number, size_t first_stack) {
  const GridConfig& config = *g->config;
  const dim3 grid = config.grid, size = config.block;
  const unsigned count = size.x * size.y * size.z;
  block.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  block.threads.resize(count);
  block.warps.resize((count + 31) / 32);
  block.alive = count;
  block.arrived = 0;
  block.gathering = {0, 1, 0};
  block.first_stack = first_stack;
  for (Warp& warp : block.warps) {
    warp.alive = 0;
    warp.barriers.resize(4);
    for (WarpBarrier& barrier : warp.barriers) barrier.free = !(barrier.gathering = false);
  }
  if (!block.dynamic) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, std::max<size_t>(config.shared_bytes, 1)) != 0)
      fail_runtime("emulation", "no memory for ", config.shared_bytes, " bytes of shared memory");
    block.dynamic.reset(static_cast<unsigned char*>(memory));
  }
  race_forget(block.dynamic.get(), config.shared_bytes);
  std::memset(block.dynamic.get(), kPoison, config.shared_bytes);
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.at = {{i % size.x, i / size.x % size.y, i / size.x / size.y},
                 block.index,
                 size,
                 grid,
                 i % 32,
                 i / 32};
    thread.wait = Wait::kReady;
    thread.copies.clear();
    block.warps[i / 32].alive |= 1u << (i % 32);
    prepare(thread.context, stacks.at(first_stack + i), Stacks::bytes_each(), &thread_entry);
    race_create(thread.context);
  }
}

void finish_block(Block& block) {
  bool healthy = true;
  for (size_t i = 0; i < block.threads.size(); ++i) {
    race_destroy(block.threads[i].context);
    healthy = stacks.recycle(block.first_stack + i) && healthy;
  }
  if (!healthy && !g->error)
    fail_runtime(g->config->op, "a CUDA thread needs more than ", Stacks::bytes_each(),
                 " bytes of stack in the emulation");
}

[[noreturn]] void fail_deadlock(const std::vector<Block*>& blocks) {
  std::string text;
  for (const Block* block : blocks)
    if (block->alive && text.size() < 2000) text += "\n  " + describe_waiting(*block);
  fail_runtime(g->config->op, "deadlock in the emulated kernel:", text);
}

// Returns whether a thread that waits by polling got another turn.
bool wake_pollers(const std::vector<Block*>& blocks) {
  bool any = false;
  for (Block* block : blocks)
    for (Thread& thread : block->threads)
      if (thread.wait == Wait::kYield) {
        thread.wait = Wait::kReady;
        any = true;
      }
  return any;
}

// Runs resident blocks to their end; they take turns at grid barriers and where they poll.
void run_resident(const std::vector<Block*>& blocks, StaticShared* statics) {
  constexpr int kMostPolls = 100000;
  for (int polls = 0;;) {
    bool progress = false, alive = false;
    for (Block* block : blocks) {
      if (!block->alive) continue;
      if (blocks.size() > 1) statics->load(block->statics);
      progress = run_block(*block) || progress;
      if (blocks.size() > 1) statics->save(&block->statics);
      if (g->error) return;
      alive = alive || block->alive;
    }
    if (!alive) return;
    const bool polling = wake_pollers(blocks);
    polls = polling ? polls + 1 : 0;
    if ((!progress && !polling) || polls > kMostPolls) fail_deadlock(blocks);
  }
}

void check_config(const GridConfig& c) {
  const size_t threads = size_t{c.block.x} * c.block.y * c.block.z;
  const size_t blocks = size_t{c.grid.x} * c.grid.y * c.grid.z;
  if (threads == 0 || threads > 1024 || c.block.z > 64 || blocks == 0 || c.grid.x > 2147483647u ||
      c.grid.y > 65535 || c.grid.z > 65535 || c.shared_bytes > kSharedLimit)
    fail_runtime(c.op, "invalid launch: grid (", c.grid.x, ",", c.grid.y, ",", c.grid.z,
                 "), block (", c.block.x, ",", c.block.y, ",", c.block.z, "), ", c.shared_bytes,
                 " bytes of dynamic shared memory");
  if (c.cooperative && blocks > emulated_resident_blocks(threads, c.shared_bytes))
    fail_runtime(c.op, "a cooperative grid of ", blocks, " blocks is more than can be resident");
}

void run_all_blocks(const GridConfig& config) {
  StaticShared statics;
  const unsigned count = config.grid.x * config.grid.y * config.grid.z;
  const unsigned threads = config.block.x * config.block.y * config.block.z;
  const unsigned resident = config.cooperative ? count : 1;
  stacks.require(size_t{resident} * threads);
  g->threads = size_t{count} * threads;
  std::vector<Block> blocks(resident);
  const std::vector<unsigned> order = permuted(count);
  for (unsigned next = 0; next < count; next += resident) {
    statics.poison();
    std::vector<Block*> now;
    for (unsigned i = 0; i < resident; ++i) {
      now.push_back(&blocks[i]);
      if (resident > 1) statics.save(&blocks[i].statics);
      start_block(blocks[i], order[next + i], size_t{i} * threads);
    }
    race_release(&g->start_key);
    try {
      run_resident(now, &statics);
    } catch (...) {
      g->error = std::current_exception();
    }
    for (Block& block : blocks) finish_block(block);
    if (g->error) break;
  }
  race_acquire(&g->end_key);
}

}  // namespace

void run_grid(const GridConfig& config, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(launch_lock);
  check_config(config);
  log_launch(config);
  read_skip();
  Grid grid;
  grid.order = read_order();
  grid.config = &config;
  grid.kernel = &kernel;
  race_adopt_main(grid.main);
  g = &grid;
  try {
    run_all_blocks(config);
  } catch (...) {
    grid.error = std::current_exception();
  }
  g = nullptr;
  g_here = nullptr;
  if (grid.error) std::rethrow_exception(grid.error);
}

void* dynamic_shared() { return g->block->dynamic.get(); }

BlockVote sync_block(int value, Place place) {
  Block& block = *g->block;
  Thread& me = *g->thread;
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
  if (!g->config->cooperative)
    device_fail("grid barrier in a launch that is not cooperative", place);
  Thread& me = *g->thread;
  me.generation = g->generation;
  race_release(&g->race_keys[me.generation & 1]);
  // A thread that has ended is still counted: on a device the others would wait for ever.
  if (++g->arrived == g->threads) {
    g->arrived = 0;
    ++g->generation;
  } else {
    park(Wait::kGrid, "grid_sync", place);
  }
  race_acquire(&g->race_keys[me.generation & 1]);
}

void yield() { park(Wait::kYield, "a polling loop", {"", 0}); }

WarpExchange::WarpExchange(const char* what, unsigned mask, const void* value, size_t bytes,
                           Place place, bool orders_memory)
    : barrier_(nullptr) {
  Thread& me = *g->thread;
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
  if (bytes) std::memcpy(barrier->values[me.at.lane], value, bytes);
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
    std::memcpy(value, barrier->values[lane], bytes);
  } else {
    std::memset(value, kPoison, bytes);
  }
}

unsigned active_lanes() { return my_warp().alive; }

void device_fail(const std::string& text, Place place) {
  fail_runtime(g->config->op, text, " (", to_text(place), ", ", name_of(*g->thread), ")");
}

void check_aligned(const void* address, size_t bytes, Place place) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    device_fail("misaligned access of " + std::to_string(bytes) + " bytes", place);
}

void async_copy(const AsyncCopy& copy) { g->thread->copies.push(copy); }
void async_commit() { g->thread->copies.commit(); }
bool async_next(int keep, AsyncCopy* copy) { return g->thread->copies.pop(keep, copy); }

}  // namespace catapult::emulation
