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
#include "emulation/grid.hpp"
#include "emulation/runtime_api.hpp"
#include "emulation/statics.hpp"

namespace catapult::emulation {

Grid* g_grid = nullptr;
const Coordinates* g_here = nullptr;

namespace {

std::mutex launch_lock;
Stacks stacks;
Redirect redirect = nullptr;

// An exited thread no longer counts at barriers of its block and warp, as on current devices.
void leave() {
  Thread& me = *g_grid->thread;
  Block& block = *g_grid->block;
  Warp& warp = block.warps[me.at.warp];
  me.wait = Wait::kDone;
  warp.alive &= ~(1u << me.at.lane);
  --block.alive;
  if (block.alive && block.arrived == block.alive) release_block_barrier(block);
  for (WarpBarrier& barrier : warp.barriers) settle(barrier, warp.alive);
}

void thread_entry() {
  arrived_first(g_grid->main);
  race_acquire(&g_grid->start_key);
  try {
    (*g_grid->kernel)();
  } catch (...) {
    g_grid->error = std::current_exception();
  }
  race_release(&g_grid->end_key);
  leave();
  switch_context(g_grid->thread->context, g_grid->main, true);
  std::abort();
}

void resume(Block& block, Thread& thread) {
  thread.wait = Wait::kReady;
  g_grid->block = &block;
  g_grid->thread = &thread;
  g_here = &thread.at;
  switch_context(g_grid->main, thread.context, false);
}

std::vector<unsigned> permuted(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (g_grid->order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (g_grid->order == Order::kRandom) std::shuffle(order.begin(), order.end(), g_grid->random);
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
          if (!can_run(block, block.threads[index], g_grid->generation)) continue;
          resume(block, block.threads[index]);
          if (g_grid->error) return true;
          any = progress = ever = true;
        }
      }
    }
  }
  return ever;
}

void start_block(Block& block, unsigned number, size_t first_stack) {
  const GridConfig& config = *g_grid->config;
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
  if (!healthy && !g_grid->error)
    fail_runtime(g_grid->config->op, "a CUDA thread needs more than ", Stacks::bytes_each(),
                 " bytes of stack in the emulation");
}

[[noreturn]] void fail_deadlock(const std::vector<Block*>& blocks) {
  std::string text;
  for (const Block* block : blocks)
    if (block->alive && text.size() < 2000) text += "\n  " + describe_waiting(*block);
  fail_runtime(g_grid->config->op, "deadlock in the emulated kernel:", text);
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
      if (g_grid->error) return;
      alive = alive || block->alive;
    }
    if (!alive) return;
    if (polls > kMostPolls) fail_deadlock(blocks);
    const bool polling = wake_pollers(blocks);
    polls = polling ? polls + 1 : 0;
    if (!progress && !polling) fail_deadlock(blocks);
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
  g_grid->threads = size_t{count} * threads;
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
    race_release(&g_grid->start_key);
    try {
      run_resident(now, &statics);
    } catch (...) {
      g_grid->error = std::current_exception();
    }
    for (Block& block : blocks) finish_block(block);
    if (g_grid->error) break;
  }
  race_acquire(&g_grid->end_key);
}

void run_redirected(const GridConfig& c) {
  const char* const wrong =
      redirect(c.kernel, c.arguments, c.grid.x, c.block.x, c.shared_bytes, c.cooperative);
  if (wrong != nullptr) fail_runtime(c.op, wrong);
}

}  // namespace

void run_grid(const GridConfig& config, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(launch_lock);
  check_config(config);
  log_launch(config);
  if (redirect != nullptr) return run_redirected(config);
  read_skip();
  Grid grid;
  grid.order = read_order();
  grid.config = &config;
  grid.kernel = &kernel;
  race_adopt_main(grid.main);
  g_grid = &grid;
  try {
    run_all_blocks(config);
  } catch (...) {
    grid.error = std::current_exception();
  }
  g_grid = nullptr;
  g_here = nullptr;
  if (grid.error) std::rethrow_exception(grid.error);
}

}  // namespace catapult::emulation

// For tests, through ctypes: null takes it back.
extern "C" __attribute__((visibility("default"))) void catapult_emulation_redirect(
    catapult::emulation::Redirect to) {
  catapult::emulation::redirect = to;
}
