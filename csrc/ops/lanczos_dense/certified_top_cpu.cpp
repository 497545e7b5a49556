// certified_top: lanczos_dense of each matrix and the proof of its value, while it is in cache.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/lanczos_dense/certified_top_simd.hpp"
#include "ops/lanczos_dense/lanczos_dense.hpp"

namespace catapult {
namespace {

constexpr const char* kOp = "certified_top";
// Of tol, asked of the Lanczos steps, so that their error and rounding together keep to tol; where
// a hidden eigenvalue is met, a few more steps mostly find it.
constexpr double kShares[] = {0.25, 1e-3};

// Relative errors of sums of squares, rounding of Lanczos steps included, and entries whose squares
// are normal numbers.
template <typename T>
constexpr double kSum = sizeof(T) < 8 ? 4e-5 : 1e-11;
template <typename T>
constexpr double kSafe = sizeof(T) < 8 ? 1e-12 : 1e-120;

// What rounding to float32 may hide in a Cholesky factor of a matrix with such diagonal entries:
// the factor is the exact one of a matrix that differs by about sqrt(n) eps times the largest.
double hidden_by_float32(int64_t n, double largest) {
  constexpr double kMargin = 8.0;
  return kMargin * std::sqrt(static_cast<double>(n)) * std::numeric_limits<float>::epsilon() *
         largest;
}

// The proof of one matrix. From below, a Rayleigh quotient is at most the largest eigenvalue; from
// above, by what works first: Frobenius norms (LanczosComplement), for hardly more than the steps,
// or a Cholesky factor of s I - A.
template <typename T>
class Certificate {
 public:
  Certificate(const CertifiedTopArgs& args, int64_t replica, double* work, int threads)
      : args_(args), n_(args.a.size[1]), replica_(replica), work_(work), threads_(threads) {}

  void run() {
    double* numbers = args_.numbers.as<double>() + 3 * replica_;
    std::fill(numbers, numbers + 3, std::numeric_limits<double>::quiet_NaN());
    args_.products.as<int64_t>()[replica_] = 0;
    if (!fits()) return;
    bool again = false;
    for (const double share : kShares) {
      iterate(share * args_.tol, again);
      again = true;
      const double error = proof();
      if (std::isnan(error)) continue;
      numbers[0] = found_.value;
      numbers[1] = found_.residual;
      numbers[2] = error;
      return;
    }
  }

 private:
  const CertifiedTopArgs& args_;
  const int64_t n_, replica_;
  double* const work_;
  const int threads_;
  MatrixNorms norms_{};
  double frobenius_ = 0.0;
  struct {
    double value, residual, norm, bound, error;
  } found_{};

  static constexpr double kEps = std::numeric_limits<T>::epsilon();
  const T* matrix() const { return args_.a.as<T>() + replica_ * n_ * n_; }
  static const CertifiedTopLoops<T>& loops() {
    return CATAPULT_SELECT_ISA(certified_top_simd).template loops<T>();
  }

  // Finite, of a size whose squares are exact, and symmetric up to rounding, which errors include.
  bool fits() {
    loops().norms(matrix(), n_, &norms_);
    frobenius_ = std::sqrt(norms_.squares);
    const bool sized = frobenius_ > n_ * kSafe<T> && frobenius_ < 1.0 / kSafe<T>;
    return sized && std::sqrt(norms_.skew) <= 4.0 * kEps * frobenius_;
  }

  void iterate(double tol, bool confirm) {
    constexpr Dtype kType = DtypeOf<T>::value;
    T value, error;
    int64_t steps = 0;
    double exact[4] = {};
    T* vector = args_.vectors.as<T>() + replica_ * n_;
    LanczosDenseArgs lanczos;
    lanczos.a = dense_view(const_cast<T*>(matrix()), kType, {1, n_, n_});
    lanczos.eigenvalues = dense_view(&value, kType, {1, 1});
    lanczos.eigenvectors = dense_view(vector, kType, {1, 1, n_});
    lanczos.errors = dense_view(&error, kType, {1, 1});
    lanczos.steps = dense_view(&steps, Dtype::kInt64, {1});
    lanczos.exact = dense_view(exact, Dtype::kFloat64, {1, 1, 4});
    lanczos.workspace = dense_view(work_, Dtype::kFloat64, {lanczos_work()});
    lanczos.tol = tol;
    lanczos.maxiter = args_.maxiter;
    lanczos.seed = args_.seed;
    lanczos.squares = norms_.squares * (1.0 + kSum<T>);
    lanczos.confirm = confirm;
    lanczos_dense(lanczos, {-1, 0, threads_});
    args_.products.as<int64_t>()[replica_] += steps;
    found_ = {exact[0], exact[1], exact[2], exact[3], static_cast<double>(error)};
  }

  int64_t lanczos_work() const {
    return lanczos_dense_workspace(1, n_, 1, DtypeOf<T>::value, {-1, 0, 1});
  }

  // An error within what tol allows, rounding included, that is proved; NaN where none is.
  double proof() {
    const double theta = found_.value, r = found_.residual;
    if (!std::isfinite(theta) || !std::isfinite(r)) return std::nan("");
    const double share = (10.0 + std::pow(static_cast<double>(n_), 0.25)) * kEps;
    const double floor = share * std::min(frobenius_, 2.0 * found_.norm) + std::sqrt(norms_.skew);
    const double allowed = std::max(args_.tol * std::fabs(theta), 2.0 * floor);
    const double error = std::max(found_.bound - theta, 0.0) + floor;
    if (error <= allowed) return error;
    return by_cholesky(std::min(std::max(found_.error, 0.0) + floor, allowed), allowed);
  }

  double by_cholesky(double guess, double allowed) {
    const double scale = std::ldexp(1.0, -std::ilogb(frobenius_));
    const T* a = matrix();
    double diagonal = 0.0;
    for (int64_t i = 0; i < n_; ++i)
      diagonal = std::max(diagonal, std::fabs(static_cast<double>(a[i * n_ + i])));
    const double hidden = hidden_by_float32(n_, std::fabs(found_.value) + diagonal);
    const double tried = std::max(guess, 2.0 * hidden);
    const bool coarse = tried <= 0.5 * allowed;  // else float32 tells too little
    if (coarse && loops().below_float32(a, n_, scale, scale * (found_.value + tried - hidden),
                                        reinterpret_cast<float*>(work_)))
      return tried;
    for (const double error : {guess, allowed}) {
      if (coarse && error < allowed) continue;
      if (loops().below_float64(a, n_, scale, scale * (found_.value + error), work_)) return error;
    }
    return std::nan("");
  }
};

}  // namespace

int64_t certified_top_workspace(int64_t replicas, int64_t n, Dtype dtype, int threads) {
  const int64_t solvers = std::min<int64_t>(replicas, std::max(threads, 1));
  const int64_t factor = certified_top_rows(n) * certified_top_pitch(n);
  return solvers * std::max(factor, lanczos_dense_workspace(1, n, 1, dtype, {-1, 0, 1}));
}

void certified_top(const CertifiedTopArgs& args, int threads) {
  const Dtype dtype = args.a.dtype;
  check(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, kOp, "needs float32 or float64, got ",
        dtype_name(dtype));
  check_dense(kOp, "a", args.a, 3, dtype);
  const int64_t replicas = args.a.size[0], n = args.a.size[1];
  check_size(kOp, "a", args.a, 2, n);
  check(n > 0, kOp, "needs n >= 1, got ", n);
  check_dense(kOp, "vectors", args.vectors, 2, dtype);
  check_size(kOp, "vectors", args.vectors, 0, replicas);
  check_size(kOp, "vectors", args.vectors, 1, n);
  check_dense(kOp, "numbers", args.numbers, 2, Dtype::kFloat64);
  check_size(kOp, "numbers", args.numbers, 0, replicas);
  check_size(kOp, "numbers", args.numbers, 1, 3);
  check_dense(kOp, "products", args.products, 1, Dtype::kInt64);
  check_size(kOp, "products", args.products, 0, replicas);
  check_dense(kOp, "workspace", args.workspace, 1, Dtype::kFloat64);
  check(args.maxiter >= 1, kOp, "maxiter must be at least 1, got ", args.maxiter);
  const int64_t needed = certified_top_workspace(replicas, n, dtype, threads);
  check(args.workspace.size[0] >= needed, kOp, "workspace is too small: ", args.workspace.size[0]);
  const int64_t each = certified_top_workspace(1, n, dtype, 1);
  dispatch_float(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    double* work = args.workspace.as<double>();
    if (replicas >= threads) {
      parallel_for(replicas, threads, [&](int64_t r) {
        Certificate<T>(args, r, work + piece_index(threads) * each, 1).run();
      });
    } else {  // threads share the products with each
      for (int64_t r = 0; r < replicas; ++r) Certificate<T>(args, r, work, threads).run();
    }
  });
}

}  // namespace catapult
