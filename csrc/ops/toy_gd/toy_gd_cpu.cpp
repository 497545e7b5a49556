// One replica per thread at a time, its weights copied into cache-resident tiles for all steps.
#include "ops/toy_gd/toy_gd_config.hpp"
#include "ops/toy_gd/toy_gd_tiles.hpp"
#include "toy/toy_curvature_cpu.hpp"

namespace catapult {
namespace {

// What the replicas of the linear network share.
template <typename T>
struct LinearProblem : ToyGdProblem<T> {
  LinearProblem(const ToyGdArgs& a, const ToyGdTable<T>& table_in)
      : ToyGdProblem<T>(a, table_in.lanes),
        table(table_in),
        data(a.x.as<T>(), a.y.as<T>(), a.x.size[0], a.x.size[1]) {}

  const ToyGdTable<T>& table;
  ToyDataRows data;
};

// One replica of the linear network: its weights in tiles, and the small vectors of a step.
template <typename T>
class LinearRun {
 public:
  explicit LinearRun(const LinearProblem<T>& p)
      : p_(p),
        data_(p.view()),
        group_(toy_gd_group(p.inputs, p.table.lanes, sizeof(T))),
        tiles_(p),
        small_(2 * p.padded_inputs + p.padded_samples + p.inputs * p.lanes) {
    T* const at = small_.data();
    state_.tiles = tiles_.count;
    state_.inputs = p.inputs;
    state_.u = tiles_.u.data();
    state_.v = tiles_.v.data();
    state_.w = at;
    state_.zeta = at + p.padded_inputs;
    state_.residual = at + 2 * p.padded_inputs;
    state_.sums = at + 2 * p.padded_inputs + p.padded_samples;
    if (p.args.records.curvature_every > 0) {
      gram_.resize(p.inputs * p.inputs);
      curvature_ =
          std::make_unique<ToyCurvatureBatch<T>>(p.data, p.samples, static_cast<double>(p.width));
    }
  }

  T start(int64_t replica) {
    rate_ = p_.rate(replica);
    u2_ = tiles_.pack(replica);
    p_.table.measure(state_);
    return toy_divergence_cut<T>(p_.norms, p_.samples, static_cast<double>(p_.width), norm());
  }

  T loss() { return p_.table.residuals(data_, state_); }
  double norm() const { return u2_ + static_cast<double>(state_.q); }

  void step(int64_t t) {
    // |U|^2 follows from w, q and zeta exactly; summing U again would cost a third of a step.
    const double rate = static_cast<double>(rate_);
    double wz = 0.0, zz = 0.0;
    for (int64_t j = 0; j < p_.inputs; ++j) {
      const double z = static_cast<double>(state_.zeta[j]);
      wz += static_cast<double>(state_.w[j]) * z;
      zz += z * z;
    }
    u2_ += rate * (rate * static_cast<double>(state_.q) * zz - 2.0 * wz);
    // Backwards every other step: the tiles visited last are still in the nearest cache.
    p_.table.step(state_, rate_, group_, t % 2 == 1);
  }

  // S of the current step, set aside for its curvature.
  void record_curvature(T* target) {
    p_.table.gram(state_, gram_.data());
    const auto entry = [&](int64_t i, int64_t j) { return gram_[i * p_.inputs + j]; };
    curvature_->add(entry, static_cast<double>(state_.q), target);
  }

  void flush_curvature() {
    if (curvature_) curvature_->flush();
  }

  void finish(int64_t replica) { tiles_.unpack(replica); }

 private:
  const LinearProblem<T>& p_;
  ToyGdData<T> data_;
  int group_;
  ToyGdTiles<T> tiles_;
  AlignedBuffer<T> small_;
  ToyGdState<T> state_{};
  std::vector<double> gram_;
  std::unique_ptr<ToyCurvatureBatch<T>> curvature_;
  T rate_ = 0;
  double u2_ = 0.0;
};

template <typename T>
void run(const ToyGdArgs& args, const ToyGdTable<T>& table, int threads) {
  const LinearProblem<T> problem(args, table);
  run_replicas<T, LinearRun<T>>(problem, problem, threads);
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
