#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/tridiag_eigh/tridiag_eigh.hpp"
#include "ops/tridiag_eigh/tridiag_eigh_math.hpp"

namespace catapult {
namespace {

template <typename T>
void solve_one(const TridiagEighArgs& args, int64_t replica) {
  const int64_t m = args.alpha.size[1];
  const T* alpha = args.alpha.as<T>() + replica * m;
  const T* beta = args.beta.as<T>() + replica * (m - 1);
  T* values = args.eigenvalues.as<T>() + replica * m;
  T* first = args.first.as<T>() + replica * m;
  T* last = args.last.as<T>() + replica * m;

  std::vector<double> work(4 * m);
  double *d = work.data(), *e = d + m, *f = e + m, *l = f + m;
  double scale = 0.0;
  bool finite = true;
  for (int64_t i = 0; i < m; ++i) {
    d[i] = alpha[i];
    e[i] = i < m - 1 ? beta[i] : 0.0;
    finite = finite && std::isfinite(d[i]) && std::isfinite(e[i]);
    scale = std::max({scale, std::fabs(d[i]), std::fabs(e[i])});
  }
  if (scale > 0.0 && finite) {
    for (int64_t i = 0; i < m; ++i) {
      d[i] /= scale;
      e[i] /= scale;
    }
  }
  if (!finite || !tridiag_ql(d, e, f, l, m)) {
    std::fill(values, values + m, std::numeric_limits<T>::quiet_NaN());
    std::fill(first, first + m, std::numeric_limits<T>::quiet_NaN());
    std::fill(last, last + m, std::numeric_limits<T>::quiet_NaN());
    return;
  }
  sort_eigenpairs(d, f, l, m);
  for (int64_t i = 0; i < m; ++i) {
    values[i] = static_cast<T>(d[i] * scale);
    first[i] = static_cast<T>(f[i]);
    last[i] = static_cast<T>(l[i]);
  }
}

}  // namespace

void tridiag_eigh_cpu(const TridiagEighArgs& args, const Exec& exec) {
  dispatch_float(args.alpha.dtype, "tridiag_eigh", [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.alpha.size[0], exec.threads,
                 [&](int64_t replica) { solve_one<T>(args, replica); });
  });
}

}  // namespace catapult
