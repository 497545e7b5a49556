// Who touched each word of memory last, and when: two accesses of one word, one of them a write, by
// two threads with no barrier between them are a race.
#pragma once

#include <cstdint>
#include <vector>

namespace ptx {

struct Stamp {
  uint32_t epoch = 0;  // of the block's barriers; 0: never
  uint32_t warp_epoch = 0;
  uint16_t thread = 0, block = 0;
};

struct Cell {
  Stamp write, read;
  bool many_threads = false, many_warps = false;  // readers of read.epoch other than read.thread
  uint16_t copying = 0;                           // thread + 1 of a cp.async in flight
};

struct Shadow {
  uint64_t begin = 0;
  std::vector<Cell> cells;

  Cell& at(uint64_t address) { return cells[(address - begin) / 4]; }
};

// Whether an earlier access is ordered before `now`, both by one block.
inline bool ordered(const Stamp& before, const Stamp& now) {
  if (before.epoch != now.epoch || before.thread == now.thread) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_epoch != now.warp_epoch;
}

inline void note_read(Cell& cell, const Stamp& now) {
  if (cell.read.epoch != now.epoch || cell.read.block != now.block) {
    cell.many_threads = cell.many_warps = false;
  } else if (cell.read.thread / 32 != now.thread / 32) {
    cell.many_warps = true;
  } else if (cell.read.warp_epoch != now.warp_epoch) {
    cell.many_threads = false;
  } else if (cell.read.thread != now.thread) {
    cell.many_threads = true;
  }
  cell.read = now;
}

// Whether a write now would meet a read that no barrier separates from it.
inline bool read_races(const Cell& cell, const Stamp& now) {
  if (cell.read.epoch != now.epoch) return false;
  if (cell.many_warps || cell.read.thread / 32 != now.thread / 32) return true;
  if (cell.read.warp_epoch != now.warp_epoch) return false;
  return cell.many_threads || cell.read.thread != now.thread;
}

}  // namespace ptx
