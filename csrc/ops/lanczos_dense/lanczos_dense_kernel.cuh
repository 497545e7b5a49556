// The whole solve of a batch of matrices in one launch: a team of blocks per matrix, every vector
// operation shared by the team, every decision taken by its first thread. The steps are those of
// lanczos_dense_cpu.cpp.
#pragma once

#include "core/cuda/gram_schmidt.cuh"
#include "ops/lanczos_dense/lanczos_dense_math.hpp"
#include "ops/lanczos_dense/lanczos_dense_params.cuh"
#include "ops/lanczos_dense/lanczos_dense_product.cuh"
#include "ops/lanczos_dense/lanczos_dense_ritz.hpp"

namespace catapult::device {

// Slots of the team's control words, behind which the places of the pairs follow.
enum Control { kStop, kNext, kCount, kFound, kDone, kPlaces };

// Sum of the absolute values of column j of the lower triangle. The sum over all columns is the
// largest entry up to a factor n^2.
template <typename T>
__device__ double column_size(const T* a, int64_t n, int64_t j) {
  double sum = 0.0;
  for (int64_t i = j; i < n; ++i) sum += fabs(static_cast<double>(a[i * n + j]));
  return sum;
}

template <typename T>
class DenseSolver {
 public:
  __device__ DenseSolver(const LanczosDenseParams<T>& p, double* smem, Team& team, double* memory)
      : p_(p),
        c_(p.config),
        team_(team),
        memory_(memory),
        dots_(smem, static_cast<int>(c_.k + c_.room)),
        begin_(min(c_.n, team.rank * c_.chunk)),
        end_(min(c_.n, begin_ + c_.chunk)) {
    double* at = smem + GramSchmidtShared::entries(c_.k + c_.room);
    ritz_ = {at, at + c_.room, memory + c_.vectors, at + 2 * c_.room};
    vectors_ = at + 8 * c_.room;
    copied_ =
        reinterpret_cast<T*>(vectors_ + 3 * c_.padded + 2 * (blockDim.x / kWarpSize) * kStrip);
  }

  __device__ void solve(int64_t replica) {
    replica_ = replica;
    found_ = products_ = randoms_ = 0;
    known_ = norm_ = 0.0;
    beyond_ = -HUGE_VAL;
    load_matrix();
    const T* const a = p_.a + replica_ * c_.n * c_.n;
    if (sizeof(T) == 8)
      half_ = lanczos_half_scale<T>(team_sum([&](int64_t j) { return column_size(a, c_.n, j); }));
    bool have_start = p_.v0 != nullptr;
    for (bool done = false; !done;) {
      LanczosRun run{};
      run.verify = found_ == c_.k;
      run.want = run.verify ? 1 : c_.k - found_;
      run.single = c_.k == 1;
      run.threshold = run.verify ? theta()[smallest()] : 0.0;
      run.tol = p_.tol;
      run.eps = p_.eps;
      run.next = run.want + (run.single ? 2 : 1);
      begin_run(have_start);
      have_start = false;
      if (finite_) iterate(run);
      if (!finite_) return fill_nan();
      done = keep(run);
    }
    report();
  }

 private:
  const LanczosDenseParams<T>& p_;
  const LanczosDenseDevice& c_;
  Team& team_;
  double* const memory_;
  const GramSchmidtShared dots_;
  const int64_t begin_, end_;  // this block's columns
  RitzPairs ritz_;             // the first thread's
  double* vectors_;
  T* copied_;
  const T* a_ = nullptr;
  int64_t replica_ = 0, found_ = 0, m_ = 0, products_ = 0, randoms_ = 0;
  double half_ = 1.0;                 // the matrix is scaled by its square
  double known_ = 0.0;                // ||A|| from below, on every thread
  double norm_ = 0.0, beyond_ = 0.0;  // the first thread's, from Ritz values
  bool finite_ = true, exact_ = false;

  __device__ bool first() const { return team_.rank == 0 && threadIdx.x == 0; }
  __device__ T* row(int64_t i) { return reinterpret_cast<T*>(memory_ + c_.basis) + i * c_.n; }
  __device__ T* locked(int64_t i) { return reinterpret_cast<T*>(memory_ + c_.locked) + i * c_.n; }
  __device__ T* fresh(int64_t i) { return reinterpret_cast<T*>(memory_ + c_.fresh) + i * c_.n; }
  __device__ T* alpha() { return reinterpret_cast<T*>(memory_ + c_.alpha) + found_; }
  __device__ T* beta() { return reinterpret_cast<T*>(memory_ + c_.beta) + found_; }
  __device__ double* theta() { return memory_ + c_.theta; }
  __device__ double* residual() { return memory_ + c_.residual; }
  __device__ int64_t* control() { return reinterpret_cast<int64_t*>(memory_ + c_.control); }
  __device__ bool out_of_products() const { return products_ >= p_.maxiter; }
  __device__ int64_t smallest() {
    int64_t least = 0;
    for (int64_t i = 1; i < c_.k; ++i) least = theta()[i] < theta()[least] ? i : least;
    return least;
  }
  // f(j) for this block's columns, always by the same thread.
  template <typename F>
  __device__ void for_columns(F f) {
    for (int64_t j = begin_ + threadIdx.x; j < end_; j += blockDim.x) f(j);
  }

  // No barriers: those of the last solve and of the first product lie between.
  CATAPULT_CALL __device__ void load_matrix() {
    a_ = p_.a + replica_ * c_.n * c_.n;
    if (!p_.copy) return;
    for (int64_t i = threadIdx.x / kWarpSize; i < c_.n; i += blockDim.x / kWarpSize)
      for (int64_t j = threadIdx.x % kWarpSize; j <= i; j += kWarpSize)
        copied_[i * c_.n + j] = a_[i * c_.n + j];
    a_ = copied_;
  }

  // w = A x on this block's columns.
  template <typename Acc>
  CATAPULT_CALL __device__ Acc* multiply(const T* x) {
    Acc* at = reinterpret_cast<Acc*>(vectors_);
    const ProductShared<Acc> s{at, at + c_.padded, at + 2 * c_.padded, at + 3 * c_.padded};
    const Acc half = static_cast<Acc>(half_);
    team_.sync();  // x is complete
    for (int64_t i = threadIdx.x; i < c_.padded; i += blockDim.x)
      s.x[i] = in_bounds(i < c_.n) ? static_cast<Acc>(x[i]) * half : Acc(0);
    symmetric_product(a_, c_.n, c_.padded, team_, s);
    ++products_;
    Acc* const w = reinterpret_cast<Acc*>(memory_ + c_.w);
    if (team_.size == 1) {
      for_columns([&](int64_t j) { w[j] = (s.columns[j] + s.rows[j]) * half; });
      return w;
    }
    Acc* const pieces = reinterpret_cast<Acc*>(memory_ + c_.pieces);
    for (int64_t j = threadIdx.x; j < c_.n; j += blockDim.x)
      pieces[team_.rank * c_.n + j] = s.columns[j] + s.rows[j];
    team_.sync();
    for_columns([&](int64_t j) {
      Acc sum = pieces[j];
      for (int b = 1; b < team_.size; ++b) sum += pieces[b * c_.n + j];
      w[j] = sum * half;
    });
    return w;
  }

  // The sum of f(j) over all columns, on every thread.
  template <typename F>
  __device__ double team_sum(F f) {
    double part = 0.0;
    for_columns([&](int64_t j) { part += f(j); });
    part = block_sum(part, dots_.scratch);
    if (team_.size == 1) return part;
    double* const sums = memory_ + c_.sums;
    team_.sync();  // the last sums have been read
    if (threadIdx.x == 0) sums[team_.rank] = part;
    team_.sync();
    double total = 0.0;
    for (int b = 0; b < team_.size; ++b) total += sums[b];
    return total;
  }

  // row(to) = in made orthogonal to the `count` rows before it; returns its squared norm.
  CATAPULT_CALL __device__ double orthogonal_row(const T* in, int64_t count) {
    const GramSchmidt<T> g{row(0), c_.n,         static_cast<int>(count), in, row(count), begin_,
                           end_,   4.0 * p_.eps, memory_ + c_.parts};
    __syncthreads();  // a thread reads two columns, one of which another one has written
    return orthogonalise(g, dots_, team_);
  }

  CATAPULT_CALL __device__ void scale_row(int64_t i, double factor) {
    T* const x = row(i);
    for_columns([&](int64_t j) { x[j] = static_cast<T>(factor == 0.0 ? 0.0 : x[j] * factor); });
  }

  CATAPULT_CALL __device__ void begin_run(bool have_start) {
    for (int64_t i = 0; i < found_; ++i) for_columns([&](int64_t j) { row(i)[j] = locked(i)[j]; });
    double given = 0.0;
    if (have_start) {
      const T* const v0 = p_.v0 + replica_ * c_.n;
      const double squares = column_dot(v0, v0);
      given = squares > 0.0 && isfinite(squares) ? 1.0 / sqrt(squares) : 0.0;
    }
    T* const w = reinterpret_cast<T*>(memory_ + c_.w);
    for (;;) {
      if (given == 0.0) ++randoms_;
      // A little noise: an exact eigenvector as start would never see the others.
      const double noise = given == 0.0 ? 1.0 : 0.01 / sqrt(static_cast<double>(c_.n));
      const int64_t stream = given == 0.0 ? randoms_ : -1;
      for_columns([&](int64_t j) {
        const double start = given == 0.0 ? 0.0 : given * p_.v0[replica_ * c_.n + j];
        w[j] = static_cast<T>(start + noise * lanczos_random(p_.seed, stream, j));
      });
      const double squares = orthogonal_row(w, found_);
      given = 0.0;
      finite_ = isfinite(squares);  // else a pair found before was not
      if (!finite_) return;
      if (!(squares > 1e-12 * dots_.h[found_])) continue;
      scale_row(found_, 1.0 / sqrt(squares));
      break;
    }
    m_ = 0;
    exact_ = false;
  }

  CATAPULT_CALL __device__ void step() {
    const int64_t at = found_ + m_;
    const T* const w = multiply<T>(row(at));
    const double length = sqrt(orthogonal_row(w, at + 1));
    const T diagonal = static_cast<T>(dots_.h[at] + dots_.left[at]);
    known_ = max(known_, fabs(static_cast<double>(diagonal)));
    const bool broke_down = length <= 10.0 * p_.eps * max(known_, sqrt(dots_.h[at + 1]));
    const T side = broke_down ? T(0) : static_cast<T>(length);
    known_ = max(known_, static_cast<double>(side));
    scale_row(at + 1, broke_down ? 0.0 : 1.0 / length);
    if (first()) {
      alpha()[m_] = diagonal;
      beta()[m_] = side;
    }
    ++m_;
    finite_ = isfinite(diagonal) && isfinite(side);
    exact_ = side == T(0) || found_ + m_ == c_.n;
  }

  CATAPULT_CALL __device__ void iterate(LanczosRun& run) {
    for (;;) {
      step();
      if (!finite_) return;
      const bool full = m_ == c_.room && !exact_;
      const bool out = out_of_products() && m_ >= run.want;
      if (!exact_ && !full && !out && m_ < run.next) continue;
      if (first()) look(run, full, out);
      team_.sync();
      if (control()[kStop]) return;
      run.next = control()[kNext];
      if (full) restart(run);
    }
  }

  // The first thread's: may the run stop?
  CATAPULT_CALL __device__ void look(LanczosRun& run, bool full, bool out) {
    ritz_.find_values(alpha(), beta(), m_, exact_ ? 0.0 : double(beta()[m_ - 1]));
    norm_ = max(norm_, max(fabs(ritz_.values[0]), fabs(ritz_.values[m_ - 1])));
    const bool stop =
        exact_ || lanczos_may_stop(run, ritz_.values, ritz_.residuals, m_, norm_) || out;
    if (!stop && full) prepare_restart();
    control()[kStop] = stop;
    control()[kNext] = run.next;
  }

  // The first thread's: the Ritz vectors in terms of this run's rows, into vectors.
  CATAPULT_CALL __device__ void find_vectors(int64_t count) {
    ritz_.find_vectors(alpha(), beta(), count, norm_ > 0.0 ? norm_ : 1.0);
  }

  // The first thread's part of a thick restart: the new rows in terms of the old ones.
  CATAPULT_CALL __device__ void prepare_restart() {
    const int64_t p = c_.keep;
    double *g = memory_ + c_.small, *values = g + p * p, *s = values + p;
    double *diagonal = s + p, *side = diagonal + p, *mixes = memory_ + c_.mixes;
    const double coupling = beta()[m_ - 1];
    find_vectors(p);
    for (int64_t i = 0; i < p; ++i) {
      values[i] = ritz_.values[m_ - 1 - i];
      s[i] = coupling * ritz_.vectors[i * m_ + m_ - 1];
    }
    lanczos_compress(values, s, p, norm_, g, diagonal, side);
    for (int64_t i = 0; i < p; ++i) {
      const int64_t to = p - 1 - i;
      for (int64_t j = 0; j < m_; ++j) {
        double sum = 0.0;
        for (int64_t q = 0; q < p; ++q) sum += g[i * p + q] * ritz_.vectors[q * m_ + j];
        mixes[to * m_ + j] = sum;
      }
      alpha()[to] = static_cast<T>(diagonal[i]);
      beta()[to] = static_cast<T>(side[i]);
    }
  }

  // Entry j of sum_i c_i row(found + i).
  __device__ double mixed(const double* c, int64_t j) {
    double sum = 0.0;
    for (int64_t i = 0; i < m_; ++i) sum += c[i] * static_cast<double>(row(found_ + i)[j]);
    return sum;
  }

  CATAPULT_CALL __device__ void restart(LanczosRun& run) {
    const int64_t p = c_.keep;
    const double* const mixes = memory_ + c_.mixes;
    for_columns([&](int64_t j) {
      for (int64_t i = 0; i < p; ++i) fresh(i)[j] = static_cast<T>(mixed(mixes + i * m_, j));
      for (int64_t i = 0; i < p; ++i) row(found_ + i)[j] = fresh(i)[j];
      row(found_ + p)[j] = row(found_ + m_)[j];
    });
    m_ = p;
    run.seen = 0;
    run.next = p + 1 + (c_.room - p) / 8;
  }

  // Takes over the pairs a run has found; true when the solve is complete.
  CATAPULT_CALL __device__ bool keep(const LanczosRun& run) {
    int64_t* const words = control();
    if (first()) {
      int64_t count = min(run.want, m_), found = found_;
      if (run.verify) count = ritz_.values[m_ - 1] > run.threshold + 4.0 * p_.eps * norm_ ? 1 : 0;
      for (int64_t i = 0; i < m_ - count; ++i)
        beyond_ = max(beyond_, ritz_.values[i] + ritz_.residuals[i]);
      find_vectors(count);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t to = run.verify ? smallest() : found++;
        if (run.verify) beyond_ = max(beyond_, theta()[to] + residual()[to]);
        theta()[to] = ritz_.values[m_ - 1 - i];
        residual()[to] = ritz_.residuals[m_ - 1 - i];
        words[kPlaces + i] = to;
      }
      const bool nothing_left = found == c_.n || (c_.k == 1 && !run.verify) || out_of_products();
      words[kCount] = count;
      words[kFound] = found;
      words[kDone] = found == c_.k && (nothing_left || (run.verify && count == 0));
    }
    team_.sync();
    for (int64_t i = 0; i < words[kCount]; ++i)
      for_columns([&](int64_t j) {
        locked(words[kPlaces + i])[j] = static_cast<T>(mixed(memory_ + c_.vectors + i * m_, j));
      });
    found_ = words[kFound];
    return words[kDone] != 0;
  }

  // Rayleigh quotient and residual of pair i from a product in float64; makes its vector unit.
  // Returns the squared residual.
  CATAPULT_CALL __device__ double measure(int64_t i) {
    T* const x = locked(i);
    const double* const y = multiply<double>(x);
    const double xx = column_dot(x, x), value = column_dot(x, y) / xx;
    const double squares = column_rest(x, y, value) / xx;
    for_columns([&](int64_t j) { x[j] = static_cast<T>(x[j] / sqrt(xx)); });
    if (first()) {
      theta()[i] = value;
      residual()[i] = sqrt(squares);
      norm_ = max(norm_, fabs(value));
    }
    return squares;
  }

  template <typename V>
  CATAPULT_CALL __device__ double column_dot(const T* x, const V* y) {
    return team_sum([&](int64_t j) { return double(x[j]) * double(y[j]); });
  }

  CATAPULT_CALL __device__ double column_rest(const T* x, const double* y, double value) {
    return team_sum([&](int64_t j) {
      const double rest = y[j] - value * x[j];
      return rest * rest;
    });
  }

  // Pairs of different runs, and of a run that went on from rounding, overlap by some eps.
  CATAPULT_CALL __device__ void orthogonalise_locked() {
    for (int64_t i = 1; i < c_.k; ++i)
      for (int64_t q = 0; q < i; ++q) {
        T *const x = locked(i), *const other = locked(q);
        const double overlap = column_dot(x, other) / column_dot(other, other);
        for_columns([&](int64_t j) { x[j] = static_cast<T>(x[j] - overlap * other[j]); });
      }
  }

  // Rayleigh quotients and residuals from a product in float64, sorted, with their bounds.
  CATAPULT_CALL __device__ void report() {
    orthogonalise_locked();
    double block = 0.0;
    for (int64_t i = 0; i < c_.k; ++i) block += measure(i);
    if (first()) write_pairs(sqrt(block));
    team_.sync();
    for (int64_t i = 0; i < c_.k; ++i) {
      T* const out = p_.eigenvectors + (replica_ * c_.k + control()[kPlaces + i]) * c_.n;
      for_columns([&](int64_t j) { out[j] = locked(i)[j]; });
    }
    team_.sync();  // control words may be written again
  }

  CATAPULT_CALL __device__ void write_pairs(double block) {
    const double rounding = lanczos_rounding(p_.eps, c_.n) * norm_;
    for (int64_t i = 0; i < c_.k; ++i) {
      const double value = theta()[i], r = residual()[i];
      double gap = value - beyond_;
      int64_t place = 0;
      for (int64_t q = 0; q < c_.k; ++q) {
        if (q == i) continue;
        gap = min(gap, fabs(value - theta()[q]) - residual()[q]);
        place += theta()[q] > value || (theta()[q] == value && q < i);
      }
      const double bound = gap > r ? min(block, lanczos_bound(r, gap)) : block;
      p_.eigenvalues[replica_ * c_.k + place] = static_cast<T>(value / half_ / half_);
      p_.errors[replica_ * c_.k + place] = static_cast<T>((bound + rounding) / half_ / half_);
      control()[kPlaces + i] = place;
    }
    p_.steps[replica_] = products_;
  }

  CATAPULT_CALL __device__ void fill_nan() {
    const T nan = static_cast<T>(NAN);
    for (int64_t i = 0; i < c_.k; ++i) {
      T* const out = p_.eigenvectors + (replica_ * c_.k + i) * c_.n;
      for_columns([&](int64_t j) { out[j] = nan; });
      if (!first()) continue;
      p_.eigenvalues[replica_ * c_.k + i] = p_.errors[replica_ * c_.k + i] = nan;
      p_.steps[replica_] = products_;
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(256, 1) lanczos_dense_kernel(const LanczosDenseParams<T> p) {
  CATAPULT_DYNAMIC_SMEM(double, smem);
  const int team_size = static_cast<int>(p.config.team);
  const int index = blockIdx.x / team_size, teams = gridDim.x / team_size;
  Team team{static_cast<int>(blockIdx.x % team_size), team_size, p.arrived + index};
  DenseSolver<T> solver(p, smem, team, p.memory + index * p.config.total);
  for (int64_t replica = index; replica < p.replicas; replica += teams) solver.solve(replica);
}

}  // namespace catapult::device
