// One replica per SIMD lane. A lane whose replica has finished or diverged takes the next replica
// at once, so that diverged replicas cost next to nothing.
#include <algorithm>
#include <memory>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/denormals.hpp"
#include "core/interrupt.hpp"
#include "core/parallel.hpp"
#include "ops/toy_gd_reduced/toy_gd_reduced.hpp"
#include "ops/toy_gd_reduced/toy_gd_reduced_simd.hpp"
#include "toy/toy_curvature_cpu.hpp"
#include "toy/toy_math.hpp"

namespace catapult {
namespace {

// Everything the replicas share. The samples enter through rows that stand for them: at most D + 1.
template <typename T>
struct Problem {
  Problem(const ToyGdReducedArgs& a, const ToyReducedTable<T>& table_in)
      : args(a),
        table(table_in),
        samples(a.x.size[0]),
        inputs(a.x.size[1]),
        padded(inputs + inputs % 2),
        data(a.x.as<T>(), a.y.as<T>(), samples, inputs),
        x(data.rows * padded),
        y(data.y.begin(), data.y.end()),
        norms(toy_data_norms(a.x.as<T>(), a.y.as<T>(), samples, inputs)) {
    for (int64_t row = 0; row < data.rows; row += blocks.back().count) {
      blocks.push_back(block(row));
      const int64_t count = blocks.back().count;
      for (int64_t j = 0; j < inputs; ++j)
        for (int64_t b = 0; b < count; ++b)
          x.data()[row * padded + j * count + b] = static_cast<T>(data.x[(row + b) * inputs + j]);
    }
  }

  ToyReducedData<T> view() const {
    return {blocks.data(),
            static_cast<int64_t>(blocks.size()),
            x.data(),
            y.data(),
            static_cast<T>(1.0 / std::sqrt(args.width)),
            static_cast<T>(1.0 / static_cast<double>(samples))};
  }

  const ToyGdReducedArgs& args;
  const ToyReducedTable<T>& table;
  int64_t samples, inputs, padded;
  ToyDataRows data;
  AlignedBuffer<T> x;
  std::vector<T> y;
  ToyDataNorms norms;
  std::vector<ToyReducedBlock> blocks;

 private:
  // As many rows together as do not more than double the work with each other's zeros.
  ToyReducedBlock block(int64_t row) const {
    for (const int64_t count : {8, 4}) {
      if (row + count > data.rows) continue;
      ToyReducedBlock wide = {row, count, inputs, 0};
      int64_t useful = 0;
      for (int64_t a = row; a < row + count; ++a) {
        wide.first = std::min(wide.first, data.first[a]);
        wide.last = std::max(wide.last, data.last[a]);
        useful += data.last[a] - data.first[a];
      }
      if (count * (wide.last - wide.first) <= 2 * useful) return wide;
    }
    return {row, 1, data.first[row], data.last[row]};
  }
};

template <typename T>
struct Slot {
  int64_t replica = -1;  // -1: the lane is idle
  int64_t t = 0;
  ToyReplicaRecord<T> record{};
};

template <typename T>
class Lanes {
 public:
  explicit Lanes(const Problem<T>& problem)
      : p_(problem),
        lanes_(problem.table.lanes),
        memory_((5 * p_.padded + p_.padded * (p_.padded + 1) / 2 + 6) * lanes_),
        slots_(lanes_) {
    T* at = memory_.data();
    auto take = [&](int64_t entries) {
      T* start = at;
      at += entries * lanes_;
      return start;
    };
    const int64_t d = p_.padded;
    state_ = {d,       take(d), take(d), take(d), take(d), take(d), take(d * (d + 1) / 2),
              take(1), take(1), take(1), take(1), take(1), take(1)};
    if (p_.args.records.curvature_every > 0)
      curvature_ = std::make_unique<ToyCurvatureBatch<T>>(p_.data, p_.samples, p_.args.width);
  }

  // Runs the replicas first .. last - 1 to their end.
  void run(int64_t first, int64_t last, Interrupts& interrupts) {
    const ToyReducedData<T> data = p_.view();
    InterruptWatch watch(interrupts, static_cast<double>(lanes_ * p_.inputs * p_.inputs));
    int64_t next = first, active = 0;
    for (int64_t lane = 0; lane < lanes_ && next < last; ++lane, ++active) load(lane, next++);
    while (active > 0) {
      const bool acceptable = p_.table.residuals(data, state_);
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        if (slots_[lane].replica < 0 || ((acceptable || accept(lane)) && record(lane))) continue;
        unload(lane);
        if (next < last) {
          load(lane, next++);
        } else {
          --active;
        }
      }
      p_.table.advance(state_);
      watch.step();
    }
    if (curvature_) curvature_->flush();
  }

 private:
  T& entry(T* array, int64_t k, int64_t lane) const { return array[k * lanes_ + lane]; }

  // S[i][j] of the current step, i <= j.
  T gram_entry(int64_t i, int64_t j, int64_t lane) const {
    return entry(state_.s, toy_packed_index(i, j, state_.inputs), lane) +
           entry(state_.held_zeta, i, lane) * entry(state_.held_p, j, lane) +
           entry(state_.held_p, i, lane) * entry(state_.held_zeta, j, lane);
  }

  // Of a step in which some lane diverged: whether this one continues.
  bool accept(int64_t lane) {
    Slot<T>& slot = slots_[lane];
    const T norm = state_.trace[lane] + state_.q[lane];
    const T loss = state_.loss[lane];
    if (slot.record.acceptable(loss, norm)) return true;
    if (curvature_) curvature_->flush();  // hold() repeats the last one
    return slot.record.accept(slot.t, loss, norm);
  }

  // Records step t of a lane; false at the end of its run.
  bool record(int64_t lane) {
    Slot<T>& slot = slots_[lane];
    slot.record.last_loss = state_.loss[lane];
    slot.record.last_norm = state_.trace[lane] + state_.q[lane];
    if (slot.t == slot.record.next_record) slot.record.put(state_.loss[lane], state_.norm[lane]);
    if (slot.record.wants_curvature(slot.t)) {
      const auto entry = [&](int64_t i, int64_t j) { return gram_entry(i, j, lane); };
      curvature_->add(entry, static_cast<double>(state_.q[lane]), slot.record.take_curvature());
    }
    return slot.t++ < p_.args.records.steps;
  }

  void load(int64_t lane, int64_t replica) {
    const int64_t d = p_.inputs;
    const T* w = p_.args.w.template as<T>() + replica * d;
    const T* s = p_.args.s.template as<T>() + replica * d * d;
    double trace = 0.0;
    for (int64_t i = 0; i < d; ++i) {
      entry(state_.w, i, lane) = w[i];
      for (int64_t j = i; j < d; ++j)
        entry(state_.s, toy_packed_index(i, j, state_.inputs), lane) = s[i * d + j];
      trace += static_cast<double>(s[i * d + i]);
    }
    clear_direction(lane);
    const T q = p_.args.q.template as<T>()[replica];
    state_.q[lane] = q;
    state_.trace[lane] = static_cast<T>(trace);
    state_.rate[lane] = static_cast<T>(static_cast<double>(p_.args.eta.template as<T>()[replica]) /
                                       std::sqrt(p_.args.width));
    slots_[lane] = {replica, 0, toy_replica_record<T>(p_.args.records, replica)};
    slots_[lane].record.cut = state_.cut[lane] =
        toy_divergence_cut<T>(p_.norms, p_.samples, p_.args.width, trace + static_cast<double>(q));
    *slots_[lane].record.diverged_at = -1;
  }

  // Without a direction the coming step leaves the lane as it is.
  void clear_direction(int64_t lane) {
    for (int64_t i = 0; i < state_.inputs; ++i) {
      entry(state_.zeta, i, lane) = T(0);
      entry(state_.held_zeta, i, lane) = T(0);
      entry(state_.held_p, i, lane) = T(0);
    }
  }

  void unload(int64_t lane) {
    const int64_t d = p_.inputs, replica = slots_[lane].replica;
    T* w = p_.args.w.template as<T>() + replica * d;
    T* s = p_.args.s.template as<T>() + replica * d * d;
    for (int64_t i = 0; i < d; ++i) {
      w[i] = entry(state_.w, i, lane);
      for (int64_t j = i; j < d; ++j) s[i * d + j] = s[j * d + i] = gram_entry(i, j, lane);
    }
    p_.args.q.template as<T>()[replica] = state_.q[lane];
    slots_[lane].replica = -1;
    // An idle lane must not continue from non-finite numbers: padding times NaN would stay NaN.
    const int64_t entries = memory_.size() / lanes_;
    for (int64_t k = 0; k < entries; ++k) memory_.data()[k * lanes_ + lane] = T(0);
    state_.cut[lane] = static_cast<T>(FloatMax<T>::value);  // nothing to refuse
  }

  const Problem<T>& p_;
  int64_t lanes_;
  AlignedBuffer<T> memory_;
  ToyReducedLanes<T> state_;
  std::vector<Slot<T>> slots_;
  std::unique_ptr<ToyCurvatureBatch<T>> curvature_;
};

template <typename T>
void run(const ToyGdReducedArgs& args, const ToyReducedTable<T>& table, int threads) {
  const Problem<T> problem(args, table);
  // Enough replicas to refill the lanes many times, enough pieces to balance the threads.
  const int64_t replicas = args.w.size[0];
  const int64_t balanced = (replicas + 4 * threads - 1) / (4 * threads);
  const int64_t piece = std::clamp<int64_t>(balanced, table.lanes, 4096);
  const int64_t pieces = (replicas + piece - 1) / piece;
  Interrupts interrupts;
  parallel_for(pieces, threads, [&](int64_t i) {
    const FlushDenormals scope;
    Lanes<T> lanes(problem);
    lanes.run(i * piece, std::min(replicas, (i + 1) * piece), interrupts);
  });
}

}  // namespace

void toy_gd_reduced_cpu(const ToyGdReducedArgs& args, const Exec& exec) {
  const ToyReducedTables& tables = CATAPULT_SELECT_ISA(toy_gd_reduced_simd);
  if (args.w.dtype == Dtype::kFloat32) {
    run<float>(args, tables.float32, exec.threads);
  } else {
    run<double>(args, tables.float64, exec.threads);
  }
}

}  // namespace catapult
