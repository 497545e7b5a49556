// What the lanes of a warp do together: shuffles, votes, warp barriers, matrix products. Operands
// of the products lie in the lanes as the tables of the PTX ISA say (9.7.14, matrix fragments).
#include <cmath>

#include "lanes.hpp"

namespace ptx {
namespace {

enum class Shuffle { kIndex, kUp, kDown, kButterfly };

// Slots: value, whether it is in range, source, lane or distance, clamp, mask.
template <Shuffle kKind>
void shuffle(Warp& warp, const Instr& instr, Mask mask) {
  uint32_t from[kLanes];
  std::memcpy(from, warp.at<uint32_t>(instr.slot[2]), sizeof(from));
  Mask inside = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    const int b = static_cast<int>(warp.at<uint32_t>(instr.slot[3])[l] & 31);
    const int c = static_cast<int>(warp.at<uint32_t>(instr.slot[4])[l]);
    const int clamp = c & 31, segment = c >> 8 & 31;
    const int most = (l & segment) | (clamp & ~segment), least = l & segment;
    int other = l;
    if (kKind == Shuffle::kUp) other = l - b;
    if (kKind == Shuffle::kDown) other = l + b;
    if (kKind == Shuffle::kButterfly) other = l ^ b;
    if (kKind == Shuffle::kIndex) other = least | (b & ~segment);
    const bool ok = kKind == Shuffle::kUp ? other >= most : other <= most;
    if (!ok) other = l;
    if (!(mask >> other & 1)) warp.fail(instr, "reads a lane that takes no part");
    warp.at<uint32_t>(instr.slot[0])[l] = from[other];
    inside |= Mask(ok) << l;
  }
  if (instr.target >= 0) {
    Mask& d = warp.predicate(instr.slot[1]);
    d = (d & ~mask) | inside;
  }
}

enum class Vote { kAll, kAny, kBallot };

template <Vote kKind>
void vote(Warp& warp, const Instr& instr, Mask mask) {
  const Mask votes = warp.predicate(instr.slot[1]) & mask;
  if (kKind == Vote::kBallot) {
    for (int l = 0; l < kLanes; ++l)
      if (mask >> l & 1) warp.at<uint32_t>(instr.slot[0])[l] = votes;
    return;
  }
  const bool result = kKind == Vote::kAll ? votes == mask : votes != 0;
  Mask& d = warp.predicate(instr.slot[0]);
  d = result ? d | mask : d & ~mask;
}

void warp_barrier(Warp& warp, const Instr&, Mask mask) {
  if (mask == warp.alive) ++warp.epoch;
}

void active_mask(Warp& warp, const Instr& instr, Mask mask) {
  for (int l = 0; l < kLanes; ++l)
    if (mask >> l & 1) warp.at<uint32_t>(instr.slot[0])[l] = mask;
}

// A tensor core reads the upper 19 bits of a TF32 operand only.
float tf32(uint32_t bits) { return unpack<float>(bits & ~0x1fffu); }

void expect_all(Warp& warp, const Instr& instr, Mask mask) {
  if (mask != kAll) warp.fail(instr, "a matrix product takes all 32 lanes");
}

// D (16 x 8) = A (16 x 8) B (8 x 8) + C. Slots: d0-3, a0-3, b0-1, c0-3.
void mma_tf32(Warp& warp, const Instr& instr, Mask mask) {
  expect_all(warp, instr, mask);
  float a[16][8], b[8][8];
  double sum[16][8];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    const auto bits = [&](int k) { return warp.at<uint32_t>(instr.slot[k])[l]; };
    for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = tf32(bits(4 + i));
    for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = tf32(bits(8 + i));
    for (int i = 0; i < 4; ++i) sum[g + 8 * (i / 2)][2 * t + i % 2] = unpack<float>(bits(10 + i));
  }
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 8; ++c)
      for (int k = 0; k < 8; ++k) sum[r][c] += double(a[r][k]) * b[k][c];
  for (int l = 0; l < kLanes; ++l)
    for (int i = 0; i < 4; ++i)
      warp.at<uint32_t>(instr.slot[i])[l] =
          pack<float>(static_cast<float>(sum[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2]));
}

// D (8 x 8) = A (8 x 4) B (4 x 8) + C. Slots: d0-1, a, b, c0-1.
void mma_f64(Warp& warp, const Instr& instr, Mask mask) {
  expect_all(warp, instr, mask);
  double a[8][4], b[4][8], sum[8][8];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    const auto value = [&](int k) { return lane_value<double>(warp, instr.slot[k], l); };
    a[g][t] = value(2);
    b[t][g] = value(3);
    for (int i = 0; i < 2; ++i) sum[g][2 * t + i] = value(4 + i);
  }
  for (int r = 0; r < 8; ++r)
    for (int c = 0; c < 8; ++c)
      for (int k = 0; k < 4; ++k) sum[r][c] = std::fma(a[r][k], b[k][c], sum[r][c]);
  for (int l = 0; l < kLanes; ++l)
    for (int i = 0; i < 2; ++i)
      warp.at<uint64_t>(instr.slot[i])[l] = pack<double>(sum[l / 4][2 * (l % 4) + i]);
}

}  // namespace

void add_warp(Table& t) {
  const std::vector<Type> four{{4}, {0}, {4}, {4}, {4}, {4}};
  t["shfl.sync.idx.b32"] = {&shuffle<Shuffle::kIndex>, four, 5};
  t["shfl.sync.up.b32"] = {&shuffle<Shuffle::kUp>, four, 5};
  t["shfl.sync.down.b32"] = {&shuffle<Shuffle::kDown>, four, 5};
  t["shfl.sync.bfly.b32"] = {&shuffle<Shuffle::kButterfly>, four, 5};
  t["vote.sync.all.pred"] = {&vote<Vote::kAll>, {{0}, {0}, {4}}, 2};
  t["vote.sync.any.pred"] = {&vote<Vote::kAny>, {{0}, {0}, {4}}, 2};
  t["vote.sync.ballot.b32"] = {&vote<Vote::kBallot>, {{4}, {0}, {4}}, 2};
  t["bar.warp.sync"] = {&warp_barrier, {{4}}, 0};
  t["activemask.b32"] = {&active_mask, {{4}}};
  t["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"] = {
      &mma_tf32, std::vector<Type>(14, Type{4}), Opcode::kEvery};
  t["mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64"] = {&mma_f64, std::vector<Type>(6, Type{8}),
                                                          Opcode::kEvery};
}

const Table& opcodes() {
  static const Table table = [] {
    Table t;
    add_arithmetic(t);
    add_float(t);
    add_conversions(t);
    add_warp(t);
    return t;
  }();
  return table;
}

}  // namespace ptx
