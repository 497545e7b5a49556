// Resolves an address to memory of the host, checks it, and looks for races.
#pragma once

#include "machine.hpp"

namespace ptx {

enum class Use : uint8_t { kRead, kWrite, kSync };

// The host's memory behind one lane's access; Fault where it is misaligned, outside what the
// kernel was given, or races with another thread.
uint8_t* access(Warp& warp, const Instr& instr, int lane, uint64_t address, Space space,
                uint32_t bytes, Use use);

// A cp.async to shared memory, from its start to its wait.
void mark_copy(Warp& warp, const Instr& instr, int lane, uint64_t to, uint32_t bytes, bool starts);

// Counts sectors of 32 bytes, or passes over the 32 banks, of one request.
void count_request(Warp& warp, const Instr& instr, Mask mask, const uint64_t* addresses,
                   uint32_t bytes, Space space);

// Release and acquire between blocks of a grid.
void release(Warp& warp, uint64_t address);
void acquire(Warp& warp, int lane, uint64_t address);

}  // namespace ptx
