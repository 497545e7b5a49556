// One replica per SIMD lane. A lane whose replica has finished or diverged takes the next replica
// at once, so that diverged replicas cost next to nothing.
#include <algorithm>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/parallel.hpp"
#include "ops/toy_gd/toy_gd_math.hpp"
#include "ops/toy_gd_reduced/toy_gd_reduced.hpp"
#include "ops/toy_gd_reduced/toy_gd_reduced_simd.hpp"

namespace catapult {
namespace {

// Everything the replicas share.
template <typename T>
struct Problem {
  Problem(const ToyGdReducedArgs& a, const ToyReducedTable<T>& table_in)
      : args(a),
        table(table_in),
        samples(a.x.size[0]),
        inputs(a.x.size[1]),
        padded(inputs + inputs % 2),
        x(samples * padded),
        norms(toy_data_norms(a.x.as<T>(), a.y.as<T>(), samples, inputs)) {
    for (int64_t s = 0; s < samples; ++s)
      std::copy_n(a.x.as<T>() + s * inputs, inputs, x.data() + s * padded);
    if (a.records.curvature_every > 0) {
      curvature_data.resize(toy_curvature_data_size(samples, inputs));
      toy_curvature_data(a.x.as<T>(), samples, inputs, curvature_data.data());
    }
  }

  const ToyGdReducedArgs& args;
  const ToyReducedTable<T>& table;
  int64_t samples, inputs, padded;
  AlignedBuffer<T> x;
  ToyDataNorms norms;
  std::vector<double> curvature_data;
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
        memory_((5 * p_.padded + p_.padded * (p_.padded + 1) / 2 + 4) * lanes_),
        slots_(lanes_) {
    T* at = memory_.data();
    auto take = [&](int64_t entries) {
      T* start = at;
      at += entries * lanes_;
      return start;
    };
    const int64_t d = p_.padded;
    state_ = {d,       take(d), take(d), take(d), take(d), take(d), take(d * (d + 1) / 2),
              take(1), take(1), take(1), take(1)};
    if (p_.args.records.curvature_every > 0) {
      gram_.resize(p_.inputs * p_.inputs);
      work_.resize(toy_curvature_work(p_.samples, p_.inputs));
    }
  }

  // Runs the replicas first .. last - 1 to their end.
  void run(int64_t first, int64_t last) {
    const ToyReducedData<T> data = {p_.samples, p_.x.data(), p_.args.y.template as<T>(),
                                    static_cast<T>(1.0 / std::sqrt(p_.args.width))};
    int64_t next = first, active = 0;
    for (int64_t lane = 0; lane < lanes_ && next < last; ++lane, ++active) load(lane, next++);
    while (active > 0) {
      p_.table.residuals(data, state_);
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        if (slots_[lane].replica < 0 || observe(lane)) continue;
        unload(lane);
        if (next < last) {
          load(lane, next++);
        } else {
          --active;
        }
      }
      p_.table.advance(state_);
    }
  }

 private:
  T& entry(T* array, int64_t k, int64_t lane) const { return array[k * lanes_ + lane]; }

  // S[i][j] of the current step, i <= j.
  T gram_entry(int64_t i, int64_t j, int64_t lane) const {
    return entry(state_.s, toy_packed_index(i, j, state_.inputs), lane) +
           entry(state_.held_zeta, i, lane) * entry(state_.held_p, j, lane) +
           entry(state_.held_p, i, lane) * entry(state_.held_zeta, j, lane);
  }

  // Records step t of a lane; false at the end of its run.
  bool observe(int64_t lane) {
    Slot<T>& slot = slots_[lane];
    const T norm = state_.trace[lane] + state_.q[lane];
    if (!slot.record.accept(slot.t, state_.loss[lane], norm)) return false;
    if (slot.record.wants_curvature(slot.t))
      slot.record.take_curvature(static_cast<T>(curvature(lane)));
    return slot.t++ < p_.args.records.steps;
  }

  double curvature(int64_t lane) {
    const int64_t d = p_.inputs;
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = i; j < d; ++j)
        gram_[i * d + j] = gram_[j * d + i] = static_cast<double>(gram_entry(i, j, lane));
    return toy_curvature(gram_.data(), static_cast<double>(state_.q[lane]), p_.args.width,
                         p_.curvature_data.data(), p_.samples, d, work_.data());
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
    slots_[lane].record.cut =
        toy_divergence_cut<T>(p_.norms, p_.samples, p_.args.width, trace + static_cast<double>(q));
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
    // An idle lane must not go on from non-finite numbers: padding times NaN would stay NaN.
    const int64_t entries = memory_.size() / lanes_;
    for (int64_t k = 0; k < entries; ++k) memory_.data()[k * lanes_ + lane] = T(0);
  }

  const Problem<T>& p_;
  int64_t lanes_;
  AlignedBuffer<T> memory_;
  ToyReducedLanes<T> state_;
  std::vector<Slot<T>> slots_;
  std::vector<double> gram_, work_;
};

template <typename T>
void run(const ToyGdReducedArgs& args, const ToyReducedTable<T>& table, int threads) {
  const Problem<T> problem(args, table);
  // Enough replicas to refill the lanes many times, enough pieces to balance the threads.
  const int64_t replicas = args.w.size[0];
  const int64_t balanced = (replicas + 4 * threads - 1) / (4 * threads);
  const int64_t piece = std::clamp<int64_t>(balanced, table.lanes, 4096);
  const int64_t pieces = (replicas + piece - 1) / piece;
  parallel_for(pieces, threads, [&](int64_t i) {
    Lanes<T> lanes(problem);
    lanes.run(i * piece, std::min(replicas, (i + 1) * piece));
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
