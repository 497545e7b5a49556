// What the environment asks of the emulation; read again at every launch, so tests can change it.
#pragma once

#include <string>

namespace catapult::emulation {

// A line of kernel source, for reports and for skipping it.
struct Place {
  const char* file;
  int line;
};

enum class Order { kForward, kReverse, kRandom };

// CATAPULT_EMU_ORDER=forward|reverse|random: in which order the threads of a block, and the blocks
// of a grid, get to run.
Order read_order();

// CATAPULT_EMU_SKIP=file:line: leave out that barrier, or take that in_bounds() as true. The file
// may be given by its last path components.
void read_skip();
bool is_skipped(const Place& place);

// CATAPULT_EMU_TRACE=1: remember every barrier and bounds check that ran.
void note_site(const char* kind, const Place& place);

std::string to_text(const Place& place);

}  // namespace catapult::emulation
