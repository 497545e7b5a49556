#include "accesses.hpp"

#include <algorithm>
#include <sstream>

namespace ptx {
namespace {

Stamp stamp_of(const Warp& warp, int lane) {
  return {warp.block.epoch, warp.epoch, static_cast<uint16_t>(warp.thread(lane)),
          static_cast<uint16_t>(warp.block.index)};
}

// Whether what another block did is known to have come before.
bool seen(const Warp& warp, const Stamp& before, int thread) {
  const Block& block = warp.block;
  if (before.epoch <= block.seen[before.block]) return true;
  const auto held = block.held.find(thread);
  return held != block.held.end() && before.epoch <= held->second[before.block];
}

std::string told(const Stamp& stamp) {
  return "thread " + std::to_string(stamp.thread) + " of block " + std::to_string(stamp.block);
}

void check_race(Warp& warp, const Instr& instr, Cell& cell, const Stamp& now, bool writes) {
  if (cell.copying)
    warp.fail(instr, "race: the asynchronous copy of thread " + std::to_string(cell.copying - 1) +
                         " to this word was not waited for");
  const auto clash = [&](const Stamp& before, const char* what) {
    warp.fail(instr, std::string("race with the ") + what + " of " + told(before) +
                         ": no barrier between them");
  };
  const auto foreign = [&](const Stamp& before) {
    return before.epoch && before.block != now.block && !seen(warp, before, now.thread);
  };
  if (cell.write.epoch && cell.write.block == now.block ? !ordered(cell.write, now)
                                                        : foreign(cell.write))
    clash(cell.write, "write");
  if (!writes) return note_read(cell, now);
  if (cell.read.epoch && cell.read.block == now.block ? read_races(cell, now) : foreign(cell.read))
    clash(cell.read, "read");
  cell.write = now;
}

uint8_t* shared_access(Warp& warp, const Instr& instr, int lane, uint64_t offset, uint32_t bytes,
                       Use use) {
  std::vector<uint8_t>& memory = warp.block.shared;
  if (offset + bytes > memory.size())
    warp.fail(instr, "address " + std::to_string(offset) + " is outside the " +
                         std::to_string(memory.size()) + " bytes of shared memory");
  if (bytes >= 4 && use != Use::kSync)
    for (uint32_t b = 0; b < bytes; b += 4)
      check_race(warp, instr, warp.block.shadow.at(offset + b), stamp_of(warp, lane),
                 use == Use::kWrite);
  return memory.data() + offset;
}

uint8_t* global_access(Warp& warp, const Instr& instr, int lane, uint64_t address, uint32_t bytes,
                       Use use) {
  uint8_t* const host = reinterpret_cast<uint8_t*>(address);
  const auto& params = warp.block.grid.params;  // those of a __grid_constant__ have addresses
  if (use == Use::kRead && host >= params.data() && host + bytes <= params.data() + params.size())
    return host;
  const auto& space = warp.block.grid.workspace;
  if (host >= space.data() && host + bytes <= space.data() + space.size()) return host;
  for (const auto& [name, constant] : warp.block.grid.module.constants)
    if (host >= constant.data() && host + bytes <= constant.data() + constant.size() &&
        use == Use::kRead)
      return host;
  Shadow* const shadow = warp.block.grid.memory.find(address, bytes);
  if (!shadow) {
    std::ostringstream text;
    text << "address 0x" << std::hex << address << " is in none of the tensors of this call";
    warp.fail(instr, text.str());
  }
  if (bytes >= 4 && use != Use::kSync)
    for (uint32_t b = 0; b < bytes; b += 4)
      check_race(warp, instr, shadow->at(address + b), stamp_of(warp, lane), use == Use::kWrite);
  return host;
}

}  // namespace

uint8_t* access(Warp& warp, const Instr& instr, int lane, uint64_t address, Space space,
                uint32_t bytes, Use use) {
  if (address % bytes)
    warp.fail(instr, "address " + std::to_string(address) + " is not aligned to " +
                         std::to_string(bytes) + " bytes");
  if (space == Space::kLocal) {
    if (address + bytes > Warp::kLocalBytes) warp.fail(instr, "local memory overflows");
    return warp.local(lane) + address;
  }
  if (space == Space::kShared) return shared_access(warp, instr, lane, address, bytes, use);
  if (space == Space::kGeneric) {
    const uint64_t local = address - reinterpret_cast<uint64_t>(warp.local(lane));
    if (local < Warp::kLocalBytes) return reinterpret_cast<uint8_t*>(address);
    const uint64_t shared = address - reinterpret_cast<uint64_t>(warp.block.shared.data());
    if (shared < warp.block.shared.size())
      return shared_access(warp, instr, lane, shared, bytes, use);
  }
  return global_access(warp, instr, lane, address, bytes, use);
}

void mark_copy(Warp& warp, const Instr& instr, int lane, uint64_t to, uint32_t bytes, bool starts) {
  const uint16_t mark = starts ? static_cast<uint16_t>(warp.thread(lane) + 1) : 0;
  if (!starts)
    for (uint32_t b = 0; b < bytes; b += 4) warp.block.shadow.at(to + b).copying = 0;
  access(warp, instr, lane, to, Space::kShared, bytes, Use::kWrite);
  for (uint32_t b = 0; b < bytes; b += 4) warp.block.shadow.at(to + b).copying = mark;
}

namespace {

// Passes that a part of a request takes: the most different words that one bank has to give.
uint64_t passes(std::vector<uint64_t>& words) {
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  std::array<uint64_t, 32> of_bank{};
  for (uint64_t word : words) ++of_bank[word % 32];
  return words.empty() ? 0 : *std::max_element(of_bank.begin(), of_bank.end());
}

// 8 bytes a lane are served by half warps, 16 by quarters.
void count_shared(Count& count, Mask mask, const uint64_t* addresses, uint32_t bytes) {
  const int part = bytes <= 4 ? 32 : 128 / static_cast<int>(bytes);
  for (int first = 0; first < kLanes; first += part) {
    std::vector<uint64_t> words;
    for (int l = first; l < first + part; ++l)
      if (mask >> l & 1)
        for (uint32_t b = 0; b < std::max(bytes, 4u); b += 4)
          words.push_back((addresses[l] + b) / 4);
    const uint64_t taken = passes(words);
    count.units += taken;
    count.least += taken ? 1 : 0;
  }
}

void count_global(Count& count, Mask mask, const uint64_t* addresses, uint32_t bytes) {
  std::vector<uint64_t> sectors, words;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    for (uint32_t b = 0; b < bytes; b += std::min(bytes, 4u)) words.push_back(addresses[l] + b);
    sectors.push_back(addresses[l] / 32);
  }
  for (auto* list : {&sectors, &words}) {
    std::sort(list->begin(), list->end());
    list->erase(std::unique(list->begin(), list->end()), list->end());
  }
  count.units += sectors.size();
  count.least += (words.size() * std::min(bytes, 4u) + 31) / 32;
}

}  // namespace

void count_request(Warp& warp, const Instr& instr, Mask mask, const uint64_t* addresses,
                   uint32_t bytes, Space space) {
  if (space == Space::kLocal || space == Space::kParam) return;
  Count& count = warp.count(instr);
  ++count.requests;
  bool shared = space == Space::kShared;
  if (space == Space::kGeneric) {
    const uint64_t one = addresses[__builtin_ctz(mask)];
    const uint64_t at = one - reinterpret_cast<uint64_t>(warp.block.shared.data());
    shared = at < warp.block.shared.size();
  }
  shared ? count_shared(count, mask, addresses, bytes)
         : count_global(count, mask, addresses, bytes);
}

// What other threads of the block did before its last barrier is released with it.
void release(Warp& warp, uint64_t address) {
  Block& block = warp.block;
  std::vector<uint32_t>& clock = block.grid.released[address];
  clock.resize(block.seen.size());
  for (size_t b = 0; b < clock.size(); ++b) clock[b] = std::max(clock[b], block.seen[b]);
  clock[block.index] = std::max(clock[block.index], block.epoch - 1);
}

void acquire(Warp& warp, int lane, uint64_t address) {
  Block& block = warp.block;
  const auto found = block.grid.released.find(address);
  if (found == block.grid.released.end()) return;
  std::vector<uint32_t>& held = block.held[warp.thread(lane)];
  held.resize(block.seen.size());
  for (size_t b = 0; b < held.size(); ++b)
    held[b] = std::max({held[b], found->second[b], block.seen[b]});
}

}  // namespace ptx
