// What the CPU drivers of the direct form share: the samples in the layouts of the inner loops, the
// weights of a replica in tiles, and the loop over steps and replicas.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/interrupt.hpp"
#include "core/parallel.hpp"
#include "ops/toy_gd/toy_gd.hpp"
#include "ops/toy_gd/toy_gd_simd.hpp"
#include "toy/toy_math.hpp"

namespace catapult {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Everything the replicas share.
template <typename T>
struct ToyGdProblem {
  ToyGdProblem(const ToyGdArgs& a, int64_t lanes_in)
      : args(a),
        lanes(lanes_in),
        width(a.u.size[1]),
        samples(a.x.size[0]),
        inputs(a.x.size[1]),
        padded_samples(round_up(samples, std::max<int64_t>(lanes, 8))),
        padded_inputs(round_up(inputs, std::max<int64_t>(lanes, 8))),
        by_input(inputs * padded_samples),
        by_sample(samples * padded_inputs),
        y(padded_samples),
        norms(toy_data_norms(a.x.as<T>(), a.y.as<T>(), samples, inputs)) {
    const T* x = a.x.as<T>();
    for (int64_t s = 0; s < samples; ++s) {
      y.data()[s] = a.y.as<T>()[s];
      for (int64_t j = 0; j < inputs; ++j) {
        by_sample.data()[s * padded_inputs + j] = x[s * inputs + j];
        by_input.data()[j * padded_samples + s] = x[s * inputs + j];
      }
    }
  }

  ToyGdData<T> view() const {
    return {samples,         inputs,
            padded_samples,  padded_inputs,
            by_input.data(), by_sample.data(),
            y.data(),        static_cast<T>(1.0 / std::sqrt(static_cast<double>(width)))};
  }

  // eta / sqrt(W).
  T rate(int64_t replica) const {
    return static_cast<T>(static_cast<double>(args.eta.template as<T>()[replica]) /
                          std::sqrt(static_cast<double>(width)));
  }

  const ToyGdArgs& args;
  int64_t lanes, width, samples, inputs;
  int64_t padded_samples, padded_inputs;
  AlignedBuffer<T> by_input, by_sample, y;
  ToyDataNorms norms;
};

// One replica's weights in tiles of `lanes` hidden units: u[tile][input][lane], v[tile][lane].
template <typename T>
struct ToyGdTiles {
  explicit ToyGdTiles(const ToyGdProblem<T>& problem)
      : p(problem),
        count(round_up(p.width, p.lanes) / p.lanes),
        u(count * p.lanes * p.inputs),
        v(count * p.lanes) {}

  // Returns |U|^2.
  double pack(int64_t replica) {
    const int64_t d = p.inputs;
    // A diverged replica may have left NaN in the units that pad the last tile.
    std::fill_n(tile(count - 1), d * p.lanes, T(0));
    std::fill_n(v.data() + (count - 1) * p.lanes, p.lanes, T(0));
    double norm = 0.0;
    each(replica, [&](T* row, T& unit, T* tile_row, T& tile_unit) {
      for (int64_t j = 0; j < d; ++j) {
        tile_row[j * p.lanes] = row[j];
        norm += static_cast<double>(row[j]) * static_cast<double>(row[j]);
      }
      tile_unit = unit;
    });
    return norm;
  }

  void unpack(int64_t replica) {
    each(replica, [&](T* row, T& unit, const T* tile_row, T tile_unit) {
      for (int64_t j = 0; j < p.inputs; ++j) row[j] = tile_row[j * p.lanes];
      unit = tile_unit;
    });
  }

  const ToyGdProblem<T>& p;
  int64_t count;
  AlignedBuffer<T> u, v;

 private:
  T* tile(int64_t i) { return u.data() + i * p.inputs * p.lanes; }

  // f(row of U, entry of v, its place in the tiles, that of the entry) for every hidden unit.
  template <typename F>
  void each(int64_t replica, F f) {
    T* const rows = p.args.u.template as<T>() + replica * p.width * p.inputs;
    T* const units = p.args.v.template as<T>() + replica * p.width;
    for (int64_t i = 0; i < p.width; ++i)
      f(rows + i * p.inputs, units[i], tile(i / p.lanes) + i % p.lanes, v.data()[i]);
  }
};

// All steps of one replica. Run holds its state: start() and norm() give |U|^2 + |v|^2, loss() the
// loss of the weights as they are and what the next step(t) needs.
template <typename T, typename Run>
void run_replica(const ToyGdProblem<T>& p, int64_t replica, Run& run, Interrupts& interrupts) {
  InterruptWatch watch(interrupts, static_cast<double>(p.width * (p.inputs + p.samples)));
  ToyReplicaRecord<T> record = toy_replica_record<T>(p.args.records, replica);
  record.cut = run.start(replica);
  for (int64_t t = 0;; ++t) {
    const T loss = run.loss(), norm = static_cast<T>(run.norm());
    if (!record.acceptable(loss, norm)) run.flush_curvature();
    if (!record.accept(t, loss, norm)) break;
    if (record.wants_curvature(t)) run.record_curvature(record.take_curvature());
    if (t == p.args.records.steps) break;
    run.step(t);
    watch.step();
  }
  run.finish(replica);
}

// Every replica, each thread with a Run(shared) of its own.
template <typename T, typename Run, typename Shared>
void run_replicas(const ToyGdProblem<T>& p, const Shared& shared, int threads) {
  const int64_t replicas = p.args.u.size[0];
  const int team = usable_threads(threads, replicas);
  std::vector<std::unique_ptr<Run>> runs(team);
  Interrupts interrupts;
  parallel_for(replicas, team, [&](int64_t replica) {
    auto& mine = runs[piece_index(team)];
    if (!mine) mine = std::make_unique<Run>(shared);
    run_replica(p, replica, *mine, interrupts);
  });
  for (auto& mine : runs)
    if (mine) mine->flush_curvature();
}

}  // namespace catapult
