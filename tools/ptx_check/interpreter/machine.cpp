#include "machine.hpp"

#include <algorithm>

namespace ptx {

namespace {
constexpr uint64_t kTurn = 20000;        // instructions before another warp gets its turn
constexpr uint64_t kMost = 4000000000u;  // of a launch: more is a loop without end
constexpr int kNowhere = 1 << 30;
}  // namespace

Warp::Warp(Block& block, int index, int threads, Function& entry)
    : block(block), index(index), local_(size_t(kLanes) * kLocalBytes, 0xCB) {
  const int left = threads - index * kLanes;
  alive = left >= kLanes ? kAll : (Mask(1) << left) - 1;
  push(entry, alive, nullptr);
}

Count& Warp::count(const Instr& instr) {
  Function& f = *frames_.back().function;
  return f.counts[&instr - f.code.data()];
}

void Warp::fail(const Instr& instr, const std::string& what) const {
  const Module& module = block.grid.module;
  const std::string source =
      instr.source >= 0 ? ", " + module.sources[instr.source] : std::string();
  throw Fault(module.name + ":" + std::to_string(instr.line) + source + ": block " +
              std::to_string(block.index) + ", warp " + std::to_string(index) + ": `" + instr.text +
              "`: " + what);
}

void Warp::push(Function& function, Mask mask, const Instr* call) {
  Frame frame;
  const auto found = std::find_if(spare_.begin(), spare_.end(),
                                  [&](const Frame& f) { return f.function == &function; });
  if (found != spare_.end()) {
    frame = std::move(*found);
    spare_.erase(found);
  } else {
    frame.registers = function.image;
  }
  frame.function = &function;
  frame.call = call;
  frame.pc.fill(0);
  frame.mask = frame.called = mask;
  frame.parked = 0;
  frame.local_base = 0;
  if (!frames_.empty()) {
    const Frame& caller = frames_.back();
    frame.local_base = caller.local_base + (caller.function->local_bytes + 15) / 16 * 16;
    if (frame.local_base + function.local_bytes > kLocalBytes) fail(*call, "local memory is full");
  }
  fill_specials(frame);
  frames_.push_back(std::move(frame));
  registers_ = frames_.back().registers.data();
}

void Warp::fill_specials(Frame& frame) {
  for (const auto& [name, slot] : frame.function->specials) {
    uint32_t* to = reinterpret_cast<uint32_t*>(frame.registers.data() + slot);
    for (int l = 0; l < kLanes; ++l) {
      const uint64_t space = reinterpret_cast<uint64_t>(block.grid.workspace.data());
      if (name == "%tid.x") to[l] = thread(l);
      if (name == "%ntid.x") to[l] = block.grid.threads;
      if (name == "%ctaid.x") to[l] = block.index;
      if (name == "%nctaid.x") to[l] = block.grid.blocks;
      if (name == "%laneid") to[l] = l;
      if (name == "%envreg1") to[l] = static_cast<uint32_t>(space >> 32);
      if (name == "%envreg2") to[l] = static_cast<uint32_t>(space);
      if (name == "%local") reinterpret_cast<uint64_t*>(to)[l] = frame.local_base;
    }
  }
}

void Warp::enter(const Instr& instr, Mask mask) {
  push(*instr.callee, mask, &instr);
  const uint8_t* caller = frames_[frames_.size() - 2].registers.data();
  for (size_t i = instr.callee->results; i < instr.callee->formals.size(); ++i)
    std::memcpy(registers_ + instr.callee->formals[i], caller + instr.arguments[i], 8 * kLanes);
}

void Warp::finish_copies() {
  if (!alive) copies.clear();
}

// Lanes return: of the kernel they end; a frame that all have left hands its result over.
void Warp::leave(Group& group, Mask mask) {
  Frame& frame = frames_.back();
  frame.mask &= ~mask;
  frame.parked = 0;  // they may wait for fewer now
  if (!frame.call) alive &= ~mask;
  group.mask &= ~mask;
  if (frame.mask) return;
  Frame ended = std::move(frames_.back());
  frames_.pop_back();
  if (frames_.empty()) return finish_copies();
  registers_ = frames_.back().registers.data();
  for (size_t i = 0; i < ended.function->results; ++i) {
    const auto* from =
        reinterpret_cast<const uint64_t*>(ended.registers.data() + ended.function->formals[i]);
    for (int l = 0; l < kLanes; ++l)
      if (ended.called >> l & 1) at<uint64_t>(ended.call->arguments[i])[l] = from[l];
  }
  spare_.push_back(std::move(ended));
}

// Those furthest behind.
Warp::Group Warp::pick(Frame& frame) const {
  const Mask ready = frame.mask & ~frame.parked;
  Group group{kNowhere, kNowhere, 0};
  for (int l = 0; l < kLanes; ++l) {
    if (!(ready >> l & 1)) continue;
    if (frame.pc[l] < group.pc) {
      group.other = group.pc;
      group.pc = frame.pc[l];
      group.mask = 0;
    }
    if (frame.pc[l] == group.pc)
      group.mask |= Mask(1) << l;
    else
      group.other = std::min(group.other, frame.pc[l]);
  }
  if (ready) return group;
  const int stuck = frame.pc[__builtin_ctz(frame.mask)];
  fail(frame.function->code[stuck], "lanes of its mask are elsewhere");
}

void Warp::put_down(Frame& frame, Group& group, int pc, Mask mask) {
  for (int l = 0; l < kLanes; ++l)
    if (mask >> l & 1) frame.pc[l] = pc;
  group.mask &= ~mask;
  group.other = std::min(group.other, pc);
}

// Whether all lanes that the instruction names are here; where not, these wait.
bool Warp::gather(Frame& frame, Group& group, const Instr& instr) {
  const Mask named =
      instr.members >= 0 ? at<Mask>(instr.slot[instr.members])[__builtin_ctz(group.mask)] : kAll;
  for (int l = 0; l < kLanes; ++l)
    if ((frame.parked >> l & 1) && frame.pc[l] == group.pc) group.mask |= Mask(1) << l;
  frame.parked &= ~group.mask;
  if (!(named & alive & ~group.mask)) return true;
  frame.parked |= group.mask;
  put_down(frame, group, group.pc, group.mask);
  return false;
}

void Warp::branch(Frame& frame, Group& group, const Instr& instr, Mask taken) {
  const Mask rest = group.mask & ~taken;
  if (rest && taken) {
    const bool back = instr.target < instr.next;
    put_down(frame, group, back ? instr.next : instr.target, back ? rest : taken);
    group.pc = back ? instr.target : instr.next;
  } else {
    group.pc = rest ? instr.next : instr.target;
  }
}

void Warp::step(Group& group) {
  Frame& frame = frames_.back();
  const Instr& instr = frame.function->code[group.pc];
  if ((instr.flow == Flow::kTogether || instr.flow == Flow::kBarrier) &&
      !gather(frame, group, instr))
    return;
  Mask mask = group.mask;
  if (instr.guarded) mask &= instr.negated ? ~predicate(instr.guard) : predicate(instr.guard);
  Count& count = frame.function->counts[group.pc];
  ++count.issued;
  count.lanes += __builtin_popcount(mask);
  if (instr.flow == Flow::kBranch) return branch(frame, group, instr, mask);
  group.pc = instr.next;
  if (!mask) return;
  switch (instr.flow) {
    case Flow::kReturn:
      return leave(group, mask);
    case Flow::kCall:
      put_down(frame, group, instr.next, group.mask);
      return enter(instr, mask);
    case Flow::kBarrier:
      ++epoch;
      waiting_ = true;
      break;
    case Flow::kTrap:
      fail(instr, "trap");
    default:
      instr.run(*this, instr, mask);
  }
}

uint64_t Warp::run(uint64_t most) {
  uint64_t ran = 0;
  paused_ = false;
  while (ran < most && !frames_.empty() && !waiting_ && !paused_) {
    Group group = pick(frames_.back());
    const size_t depth = frames_.size();
    for (; ran < most && group.mask && group.pc < group.other; ++ran) {
      step(group);
      if (waiting_ || paused_) break;
    }
    if (group.mask && frames_.size() == depth)
      put_down(frames_.back(), group, group.pc, group.mask);
  }
  return ran;
}

Block::Block(Grid& grid, unsigned index) : grid(grid), index(index), seen(grid.blocks) {
  shared.assign(grid.entry.shared_bytes + grid.dynamic_bytes, 0xCB);
  shadow.cells.resize((shared.size() + 3) / 4);
  const int count = static_cast<int>(grid.threads + kLanes - 1) / kLanes;
  warps.reserve(count);
  for (int w = 0; w < count; ++w)
    warps.emplace_back(*this, w, static_cast<int>(grid.threads), grid.entry);
  grid.entry.warps += count;
  ++grid.entry.blocks;
}

bool Block::done() const {
  return std::all_of(warps.begin(), warps.end(), [](const Warp& w) { return w.done(); });
}

bool Block::turn() {
  bool ran = false;
  for (Warp& warp : warps) {
    const uint64_t count = warp.run(kTurn);
    grid.entry.issued += count;
    ran = ran || count;
  }
  const bool all = std::all_of(warps.begin(), warps.end(),
                               [](const Warp& w) { return w.done() || w.waiting(); });
  if (!all || done()) return ran;
  ++epoch;
  for (auto& [thread, clock] : held)
    for (size_t b = 0; b < seen.size(); ++b) seen[b] = std::max(seen[b], clock[b]);
  held.clear();
  for (Warp& warp : warps) warp.release();
  return true;
}

void Memory::add(uint64_t begin, uint64_t bytes) {
  const uint64_t end = begin + bytes;
  const auto known = [&](const Part& p) { return p.begin <= begin && end <= p.end; };
  if (bytes == 0 || std::any_of(parts_.begin(), parts_.end(), known)) return;
  Part part{begin, end, {begin / 4 * 4, {}}};
  part.shadow.cells.resize((end - part.shadow.begin + 3) / 4);
  parts_.push_back(std::move(part));
}

void Memory::clear() {
  parts_.clear();
  last_ = 0;
}

void Memory::start_launch() {
  for (Part& part : parts_) std::fill(part.shadow.cells.begin(), part.shadow.cells.end(), Cell{});
}

Shadow* Memory::find(uint64_t address, uint64_t bytes) {
  const auto holds = [&](const Part& p) { return p.begin <= address && address + bytes <= p.end; };
  if (last_ < parts_.size() && holds(parts_[last_])) return &parts_[last_].shadow;
  for (size_t i = 0; i < parts_.size(); ++i)
    if (holds(parts_[i])) {
      last_ = i;
      return &parts_[i].shadow;
    }
  return nullptr;
}

void run(Grid& grid) {
  ++grid.entry.launches;
  grid.memory.start_launch();
  const uint64_t before = grid.entry.issued;
  const auto check_limit = [&] {
    if (grid.entry.issued - before > kMost)
      throw Fault(grid.entry.name + ": more than " + std::to_string(kMost) + " instructions");
  };
  if (!grid.cooperative) {
    for (unsigned b = 0; b < grid.blocks; ++b) {
      Block block(grid, b);
      while (!block.done()) {
        block.turn();
        check_limit();
      }
    }
    return;
  }
  std::vector<Block> blocks;
  blocks.reserve(grid.blocks);
  for (unsigned b = 0; b < grid.blocks; ++b) blocks.emplace_back(grid, b);
  for (bool alive = true; alive; check_limit()) {
    alive = false;
    for (Block& block : blocks) {
      if (!block.done()) block.turn();
      alive = alive || !block.done();
    }
  }
}

}  // namespace ptx
