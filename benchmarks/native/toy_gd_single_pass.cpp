// What a specialist would write for one problem size: gradient descent of f = v.Ux / sqrt(W), one
// pass over U per step, sizes fixed at compile time, -march=native -ffast-math, no checks, no
// records but the loss. The library's general kernel is held against it (bench_toy_gd.py).
#include <cmath>
#include <vector>

#ifndef INPUTS
#define INPUTS 16
#endif
#ifndef SAMPLES
#define SAMPLES 32
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4, D = INPUTS, N = SAMPLES;
typedef float Vec __attribute__((vector_size(kBytes)));

float sum(Vec v) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
}

// One replica: U (W, D) and v (W) are read, loss (steps + 1) is written.
void descend(const float* u_in, const float* v_in, const float* x, const float* y, float eta,
             int width, int steps, float* loss) {
  const int tiles = width / kLanes;
  const float root = std::sqrt(static_cast<float>(width)), rate = eta / root;
  std::vector<Vec> u(tiles * D), v(tiles);
  for (int i = 0; i < width; ++i) {
    for (int j = 0; j < D; ++j) u[i / kLanes * D + j][i % kLanes] = u_in[i * D + j];
    v[i / kLanes][i % kLanes] = v_in[i];
  }
  Vec sums[D] = {};
  for (int t = 0; t < tiles; ++t)
    for (int j = 0; j < D; ++j) sums[j] += v[t] * u[t * D + j];
  for (int step = 0;; ++step) {
    float w[D], zeta[D] = {}, squares = 0;
    for (int j = 0; j < D; ++j) w[j] = sum(sums[j]) / root;
    for (int a = 0; a < N; ++a) {
      float r = -y[a];
      for (int j = 0; j < D; ++j) r += x[a * D + j] * w[j];
      squares += r * r;
      for (int j = 0; j < D; ++j) zeta[j] += r * x[a * D + j] / N;
    }
    loss[step] = squares / (2 * N);
    if (step == steps) return;
    for (int j = 0; j < D; ++j) sums[j] = Vec{};
    for (int t = 0; t < tiles; ++t) {
      Vec* tile = &u[t * D];
      Vec uz{};
      for (int j = 0; j < D; ++j) uz += tile[j] * zeta[j];
      const Vec pull = v[t] * rate;
      v[t] -= rate * uz;
      for (int j = 0; j < D; ++j) {
        tile[j] -= pull * zeta[j];
        sums[j] += v[t] * tile[j];
      }
    }
  }
}

}  // namespace

extern "C" void toy_gd_single_pass(const float* u, const float* v, const float* x, const float* y,
                                   const float* eta, int replicas, int width, int steps,
                                   int threads, float* loss) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int r = 0; r < replicas; ++r)
    descend(u + static_cast<long>(r) * width * D, v + static_cast<long>(r) * width, x, y, eta[r],
            width, steps, loss + static_cast<long>(r) * (steps + 1));
}
