#include "emulation/block.hpp"

#include <map>
#include <sstream>

namespace catapult::emulation {
namespace {

std::string triple(const uint3& v) {
  std::ostringstream text;
  text << "(" << v.x << "," << v.y << "," << v.z << ")";
  return text.str();
}

}  // namespace

bool can_run(const Block& block, const Thread& thread, uint64_t grid_generation) {
  switch (thread.wait) {
    case Wait::kReady:
      return true;
    case Wait::kBlock:
      return thread.generation != block.generation;
    case Wait::kWarp:
      return !thread.barrier->gathering;
    case Wait::kGrid:
      return thread.generation != grid_generation;
    default:
      return false;
  }
}

std::string name_of(const Thread& thread) {
  return "block " + triple(thread.at.block) + " thread " + triple(thread.at.thread);
}

std::string describe_waiting(const Block& block) {
  std::map<std::string, std::pair<int, std::string>> places;
  for (const Thread& thread : block.threads) {
    if (thread.wait == Wait::kDone || thread.wait == Wait::kReady) continue;
    const std::string where = thread.place.line ? " (" + to_text(thread.place) + ")" : "";
    auto& entry = places[thread.what + where];
    if (entry.first++ == 0) entry.second = triple(thread.at.thread);
  }
  std::ostringstream text;
  text << "block " << triple(block.index) << ":";
  const char* separator = " ";
  for (const auto& [place, entry] : places) {
    text << separator << entry.first << " threads wait at " << place << ", the first is thread "
         << entry.second;
    separator = "; ";
  }
  if (block.alive < block.threads.size())
    text << separator << block.threads.size() - block.alive << " threads have ended";
  return text.str();
}

}  // namespace catapult::emulation
