// One replica per thread at a time, its weights copied into cache-resident tiles for all steps.
#include <algorithm>
#include <memory>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/parallel.hpp"
#include "core/toy_curvature_cpu.hpp"
#include "ops/toy_gd/toy_gd.hpp"
#include "ops/toy_gd/toy_gd_config.hpp"
#include "ops/toy_gd/toy_gd_math.hpp"
#include "ops/toy_gd/toy_gd_simd.hpp"

namespace catapult {
namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Everything the replicas share.
template <typename T>
struct Problem {
  Problem(const ToyGdArgs& a, const ToyGdTable<T>& table_in)
      : args(a),
        table(table_in),
        width(a.u.size[1]),
        samples(a.x.size[0]),
        inputs(a.x.size[1]),
        padded_samples(round_up(samples, table.lanes)),
        padded_inputs(round_up(inputs, table.lanes)),
        by_input(inputs * padded_samples),
        by_sample(samples * padded_inputs),
        y(padded_samples),
        data(a.x.as<T>(), a.y.as<T>(), samples, inputs),
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

  const ToyGdArgs& args;
  const ToyGdTable<T>& table;
  int64_t width, samples, inputs, padded_samples, padded_inputs;
  AlignedBuffer<T> by_input, by_sample, y;
  ToyDataRows data;
  ToyDataNorms norms;
};

// Scratch of one replica: its weights in tiles, and the small vectors of a step.
template <typename T>
struct Scratch {
  explicit Scratch(const Problem<T>& p)
      : tiles(round_up(p.width, p.table.lanes) / p.table.lanes),
        u(tiles * p.table.lanes * p.inputs),
        v(tiles * p.table.lanes),
        small(2 * p.padded_inputs + p.padded_samples + p.inputs * p.table.lanes) {
    T* at = small.data();
    state = {tiles,
             p.inputs,
             u.data(),
             v.data(),
             at,
             at + p.padded_inputs,
             at + 2 * p.padded_inputs,
             at + 2 * p.padded_inputs + p.padded_samples,
             T(0),
             T(0)};
    if (p.args.records.curvature_every > 0) {
      gram.resize(p.inputs * p.inputs);
      curvature =
          std::make_unique<ToyCurvatureBatch<T>>(p.data, p.samples, static_cast<double>(p.width));
    }
  }

  int64_t tiles;
  AlignedBuffer<T> u, v, small;
  std::vector<double> gram;
  std::unique_ptr<ToyCurvatureBatch<T>> curvature;
  ToyGdState<T> state;
};

// Rows of U (W, D) to tiles and back; |U|^2 in float64 on the way in.
template <typename T>
double pack(const Problem<T>& p, const T* u, const T* v, Scratch<T>& s) {
  const int64_t lanes = p.table.lanes, d = p.inputs;
  // A diverged replica may have left NaN in the units that pad the last tile.
  std::fill_n(s.u.data() + (s.tiles - 1) * d * lanes, d * lanes, T(0));
  std::fill_n(s.v.data() + (s.tiles - 1) * lanes, lanes, T(0));
  double norm = 0.0;
  for (int64_t i = 0; i < p.width; ++i) {
    T* tile = s.u.data() + (i / lanes) * d * lanes + i % lanes;
    for (int64_t j = 0; j < d; ++j) {
      const T value = u[i * d + j];
      tile[j * lanes] = value;
      norm += static_cast<double>(value) * static_cast<double>(value);
    }
    s.v.data()[i] = v[i];
  }
  return norm;
}

template <typename T>
void unpack(const Problem<T>& p, const Scratch<T>& s, T* u, T* v) {
  const int64_t lanes = p.table.lanes, d = p.inputs;
  for (int64_t i = 0; i < p.width; ++i) {
    const T* tile = s.u.data() + (i / lanes) * d * lanes + i % lanes;
    for (int64_t j = 0; j < d; ++j) u[i * d + j] = tile[j * lanes];
    v[i] = s.v.data()[i];
  }
}

// S of the current step, set aside for its curvature.
template <typename T>
void record_curvature(const Problem<T>& p, Scratch<T>& s, T* target) {
  p.table.gram(s.state, s.gram.data());
  const auto entry = [&](int64_t i, int64_t j) { return s.gram[i * p.inputs + j]; };
  s.curvature->add(entry, static_cast<double>(s.state.q), target);
}

template <typename T>
void run_replica(const Problem<T>& p, int64_t replica, Scratch<T>& s) {
  T* u = p.args.u.template as<T>() + replica * p.width * p.inputs;
  T* v = p.args.v.template as<T>() + replica * p.width;
  const ToyGdData<T> data = p.view();
  const T step_rate = static_cast<T>(static_cast<double>(p.args.eta.template as<T>()[replica]) /
                                     std::sqrt(static_cast<double>(p.width)));
  const double rate = static_cast<double>(step_rate);
  const int group = toy_gd_group(p.inputs, p.table.lanes, sizeof(T));
  // |U|^2 follows from w, q and zeta exactly; summing U again would cost a third of a step.
  double u_norm = pack(p, u, v, s);
  p.table.measure(s.state);
  ToyReplicaRecord<T> record = toy_replica_record<T>(p.args.records, replica);
  record.cut = toy_divergence_cut<T>(p.norms, p.samples, static_cast<double>(p.width),
                                     u_norm + static_cast<double>(s.state.q));
  for (int64_t t = 0;; ++t) {
    const T loss = p.table.residuals(data, s.state);
    const T norm = static_cast<T>(u_norm + static_cast<double>(s.state.q));
    if (s.curvature && !record.acceptable(loss, norm)) s.curvature->flush();
    if (!record.accept(t, loss, norm)) break;
    if (record.wants_curvature(t)) record_curvature(p, s, record.take_curvature());
    if (t == p.args.records.steps) break;
    double wz = 0.0, zz = 0.0;
    for (int64_t j = 0; j < p.inputs; ++j) {
      const double z = static_cast<double>(s.state.zeta[j]);
      wz += static_cast<double>(s.state.w[j]) * z;
      zz += z * z;
    }
    u_norm += rate * (rate * static_cast<double>(s.state.q) * zz - 2.0 * wz);
    // Backwards every other step: the tiles visited last are still in the nearest cache.
    p.table.step(s.state, step_rate, group, t % 2 == 1);
  }
  unpack(p, s, u, v);
}

template <typename T>
void run(const ToyGdArgs& args, const ToyGdTable<T>& table, int threads) {
  const Problem<T> problem(args, table);
  const int64_t replicas = args.u.size[0];
  const int team = usable_threads(threads, replicas);
  std::vector<std::unique_ptr<Scratch<T>>> scratch(team);
  parallel_for(replicas, team, [&](int64_t replica) {
    auto& mine = scratch[team > 1 ? thread_index() : 0];
    if (!mine) mine = std::make_unique<Scratch<T>>(problem);
    run_replica(problem, replica, *mine);
  });
  for (auto& mine : scratch)
    if (mine && mine->curvature) mine->curvature->flush();
}

}  // namespace

void toy_gd_cpu(const ToyGdArgs& args, const Exec& exec) {
  const ToyGdTables& tables = CATAPULT_SELECT_ISA(toy_gd_simd);
  if (args.u.dtype == Dtype::kFloat32) {
    run<float>(args, tables.float32, exec.threads);
  } else {
    run<double>(args, tables.float64, exec.threads);
  }
}

}  // namespace catapult
