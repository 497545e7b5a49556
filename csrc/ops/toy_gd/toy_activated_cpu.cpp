// toy_gd with an activation: as toy_gd_cpu.cpp, with phi and phi' of every unit and sample kept
// from one step to the next.
#include "ops/toy_gd/toy_activated.hpp"
#include "ops/toy_gd/toy_activated_simd.hpp"
#include "ops/toy_gd/toy_gd_tiles.hpp"
#include "toy/top_eigenvalue.hpp"

namespace catapult {
namespace {

// What the replicas share: besides, for the curvature, the inner products of the samples.
template <typename T>
struct ActivatedProblem : ToyGdProblem<T> {
  ActivatedProblem(const ToyGdArgs& a, const ToyActivatedTable<T>& table_in)
      : ToyGdProblem<T>(a, table_in.lanes), table(table_in) {
    if (a.records.curvature_every == 0) return;
    const T* x = a.x.as<T>();
    const int64_t n = this->samples, d = this->inputs;
    inner.resize(n * n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) inner[i * n + j] = toy_inner(x + i * d, x + j * d, d);
  }

  const ToyActivatedTable<T>& table;
  std::vector<double> inner;
};

template <typename T>
class ActivatedRun {
 public:
  explicit ActivatedRun(const ActivatedProblem<T>& p)
      : p_(p),
        data_(p.view()),
        tiles_(p),
        live_(tiles_.count * p.lanes),
        units_(2 * live_.size() * p.samples),
        small_(p.samples * (p.lanes + 2)) {
    std::fill_n(live_.data(), p.width, T(1));
    T *const at = small_.data(), *const h = units_.data();
    state_.tiles = tiles_.count;
    state_.u = tiles_.u.data();
    state_.v = tiles_.v.data();
    state_.live = live_.data();
    state_.h = h;
    state_.g = h + live_.size() * p.samples;
    state_.sums = at;
    state_.f = at + p.samples * p.lanes;
    state_.pull = state_.f + p.samples;
    const int64_t n = p.args.records.curvature_every > 0 ? p.samples : 0;
    kernel_.resize(n * n + 4 * n);
  }

  T start(int64_t replica) {
    rate_ = p_.rate(replica) / static_cast<T>(p_.samples);
    const double u2 = tiles_.pack(replica);
    p_.table.look(data_, state_, kind(), slope());
    state_.u2 = u2;
    return toy_divergence_cut<T>(p_.norms, p_.samples, static_cast<double>(p_.width), norm(),
                                 p_.args.activation, static_cast<double>(state_.q));
  }

  T loss() {
    double squares = 0.0;
    for (int64_t a = 0; a < p_.samples; ++a) {
      const T residual = state_.f[a] * data_.inverse_root_width - data_.y[a];
      state_.pull[a] = rate_ * residual;
      squares += static_cast<double>(residual) * static_cast<double>(residual);
    }
    return static_cast<T>(squares / (2.0 * static_cast<double>(p_.samples)));
  }

  double norm() const { return state_.u2 + static_cast<double>(state_.q); }
  void step(int64_t) { p_.table.step(data_, state_, kind(), slope()); }

  void record_curvature(T* target) {
    const int64_t n = p_.samples;
    p_.table.kernel(data_, state_, p_.inner.data(), kernel_.data());
    *target = static_cast<T>(top_eigenvalue(kernel_.data(), n, kernel_.data() + n * n) /
                             static_cast<double>(n * p_.width));
  }

  void flush_curvature() {}
  void finish(int64_t replica) { tiles_.unpack(replica); }

 private:
  Activation kind() const { return p_.args.activation.kind; }
  T slope() const { return static_cast<T>(p_.args.activation.slope); }

  const ActivatedProblem<T>& p_;
  ToyGdData<T> data_;
  ToyGdTiles<T> tiles_;
  AlignedBuffer<T> live_, units_, small_;
  ToyActivatedState<T> state_{};
  std::vector<double> kernel_;
  T rate_ = 0;
};

template <typename T>
void run(const ToyGdArgs& args, const ToyActivatedTable<T>& table, int threads) {
  const ActivatedProblem<T> problem(args, table);
  run_replicas<T, ActivatedRun<T>>(problem, problem, threads);
}

}  // namespace

void toy_activated_cpu(const ToyGdArgs& args, const Exec& exec) {
  const ToyActivatedTables& tables = CATAPULT_SELECT_ISA(toy_activated_simd);
  if (args.u.dtype == Dtype::kFloat32) {
    run<float>(args, tables.float32, exec.threads);
  } else {
    run<double>(args, tables.float64, exec.threads);
  }
}

}  // namespace catapult
