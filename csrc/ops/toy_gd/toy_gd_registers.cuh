// The linear network with few inputs: a block keeps all rows of a replica in registers for the
// whole run, and the first warps alone turn w into zeta, so that a step has two barriers.
#pragma once

#include "core/cuda/reduce.cuh"
#include "core/cuda/vec_io.cuh"
#include "ops/toy_gd/toy_gd_block.cuh"

namespace catapult::device {

// What the threads of a block tell each other. Behind it lie the samples in whole batches of 32,
// each with its x, y and residual; samples and inputs that fill them up are zero.
template <typename T, int kInputs>
struct alignas(16) ToyGdShared {
  static constexpr int kWarps = kToyGdMaxThreads / kWarpSize, kParts = 8;
  static constexpr int kPitch = kInputs + kPackWidth<T>;  // no conflicts of 16-byte reads

  T sums[kWarps][kInputs];  // w of the warps' rows
  T own[kWarps][kInputs];   // a warp's copy of w, then its samples' share of zeta
  T zeta[kInputs];
  double v2[kWarps][kParts];  // |v|^2 of the warps' rows, in parts
  double losses[kWarps];      // squares of the warps' residuals
  double u2;                  // |U|^2
  ToyReplicaRecord<T> record;
  double* gram;               // where the next curvature is recorded
  int64_t t, next_curvature;  // this step, and that of the next curvature
  bool ends, curvature;       // what to do at this step

  __device__ T* sample(int a) { return reinterpret_cast<T*>(this + 1) + a * kPitch; }
  __device__ static T& target(T* sample) { return sample[kInputs]; }
  __device__ static T& residual(T* sample) { return sample[kInputs + 1]; }

  // |v|^2, to each lane of a warp.
  __device__ double norm() const {
    static_assert(kWarps * kParts == 2 * kWarpSize);
    const int lane = threadIdx.x % kWarpSize;
    const double* const parts = v2[0];
    return warp_sum(parts[lane] + parts[lane + kWarpSize]);
  }
};

// The rows of one thread; those beyond the width are zero and stay so.
template <typename T, int kInputs>
struct ToyGdRegisters {
  static constexpr int kRows = static_cast<int>(toy_gd_register_rows(kInputs, sizeof(T)));
  static constexpr int kPack = kPackWidth<T>;
  T u[kRows][kInputs], v[kRows];

  // f(k, i) for each of this thread's rows, i counted over all replicas.
  template <typename F>
  __device__ static void for_rows(const ToyGdParams<T>& p, F f) {
    const int width = static_cast<int>(p.width);
    const int64_t row0 = (p.first + blockIdx.x) * p.width;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int i = k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
      if (in_bounds(i < width)) f(k, row0 + i);
    }
  }

  __device__ static bool in_packs(const ToyGdParams<T>& p) {
    return p.inputs == kInputs && is_aligned(p.u, 16);
  }

  __device__ void load(const ToyGdParams<T>& p) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      v[k] = T(0);
#pragma unroll
      for (int j = 0; j < kInputs; ++j) u[k][j] = T(0);
    }
    for_rows(p, [&](int k, int64_t i) {
      v[k] = p.v[i];
      const T* const row = p.u + i * p.inputs;
      if (in_packs(p)) {
#pragma unroll
        for (int j = 0; j < kInputs; j += kPack) {
          const Pack<T, kPack> pack = load_pack<kPack>(row + j);
#pragma unroll
          for (int e = 0; e < kPack; ++e) u[k][j + e] = pack[e];
        }
      } else {
#pragma unroll
        for (int j = 0; j < kInputs; ++j)
          if (j < p.inputs) u[k][j] = row[j];
      }
    });
  }

  __device__ void store(const ToyGdParams<T>& p) const {
    for_rows(p, [&](int k, int64_t i) {
      p.v[i] = v[k];
      T* const row = p.u + i * p.inputs;
      if (in_packs(p)) {
#pragma unroll
        for (int j = 0; j < kInputs; j += kPack) {
          Pack<T, kPack> pack;
#pragma unroll
          for (int e = 0; e < kPack; ++e) pack[e] = u[k][j + e];
          store_pack(row + j, pack);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kInputs; ++j)
          if (j < p.inputs) row[j] = u[k][j];
      }
    });
  }

  // Adds this thread's share of |U|^2 and |v|^2.
  __device__ void norms(double& u2, double& v2) const {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      v2 += static_cast<double>(v[k]) * static_cast<double>(v[k]);
#pragma unroll
      for (int j = 0; j < kInputs; ++j)
        u2 += static_cast<double>(u[k][j]) * static_cast<double>(u[k][j]);
    }
  }

  // S = U'U and |v|^2 of the weights, for the curvature; ends with a barrier.
  __device__ void record(const ToyGdParams<T>& p, ToyGdShared<T, kInputs>& s) const {
    const int64_t replica = p.first + blockIdx.x;
    store(p);
    __syncthreads();
    double* const out = s.gram;
    toy_gd_store_gram(p.u + replica * p.width * p.inputs, p.inputs, 1, p.width, p.inputs, out);
    if (threadIdx.x < kWarpSize) {
      const double v2 = s.norm();
      if (threadIdx.x == 0) out[p.inputs * p.inputs] = v2;
    }
    __syncthreads();
    if (threadIdx.x == 0) s.gram += ToyCurvatureSizes(p.samples, p.inputs, true).stored();
  }

  // Adds `along` times their gradients for zeta to the weights; leaves the warp's share of the new
  // w and |v|^2.
  __device__ void advance(ToyGdShared<T, kInputs>& s, T along) {
    constexpr int kChunk = 8;  // inputs at a time, so that their sums leave room for two blocks
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    T pull[kRows], uz[kRows] = {}, mine = T(0);
    double v2 = 0.0;
    for_packs<0, kInputs>(s.zeta, [&](int j, T z) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) uz[k] += u[k][j] * z;
    });
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      pull[k] = along * v[k];
      v[k] += along * uz[k];
      v2 += static_cast<double>(v[k]) * static_cast<double>(v[k]);
    }
    v2 = warp_fold<s.kParts>(v2);
    if (lane < s.kParts) s.v2[warp][lane] = v2;
#pragma unroll
    for (int first = 0; first < kInputs; first += kChunk) {
      T sum[kChunk] = {};
      for_packs<0, kChunk>(s.zeta + first, [&](int j, T z) {
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          u[k][first + j] += pull[k] * z;
          sum[j] += v[k] * u[k][first + j];
        }
      });
      const T total = warp_transpose_sum(sum);
      if (lane / kChunk == first / kChunk) mine = total;
    }
    if (lane < kInputs) s.sums[warp][lane] = mine;
  }

  // f(j, from[j]) for j in [kFirst, kLast), read 16 bytes at a time.
  template <int kFirst, int kLast, typename F>
  __device__ static void for_packs(const T* from, F f) {
#pragma unroll
    for (int j = kFirst; j < kLast; j += kPack) {
      const Pack<T, kPack> pack = load_pack<kPack>(from + j);
#pragma unroll
      for (int e = 0; e < kPack; ++e) f(j + e, pack[e]);
    }
  }
};

// Thread 0's at each step: records the observables, and decides what is done next. `change` is what
// the step to come adds to |U|^2.
template <typename T, int kInputs>
__device__ void toy_gd_decide(const ToyGdParams<T>& p, ToyGdShared<T, kInputs>& s, double squares,
                              double v2, double change) {
  const T loss = static_cast<T>(squares * (0.5 * p.inverse_samples));
  const bool alive = s.record.accept(s.t, loss, static_cast<T>(v2 + s.u2));
  s.u2 += change;
  s.ends = !alive || s.t == p.steps;
  s.curvature = alive && p.curvature_every > 0 && s.t == s.next_curvature;
  if (s.curvature) s.next_curvature += p.curvature_every;
  ++s.t;
}

// What a warp knows of the weights and of its samples: each lane its input's part of w and zeta.
template <typename T>
struct ToyGdSeen {
  T w, zeta;
  double squares;  // of the residuals
};

// w, and what every `warps`-th batch of samples from that of this warp on adds to zeta.
template <typename T, int kInputs>
__device__ ToyGdSeen<T> toy_gd_samples(const ToyGdParams<T>& p, ToyGdShared<T, kInputs>& s,
                                       int warp, int warps) {
  using Shared = ToyGdShared<T, kInputs>;
  constexpr int kPack = kPackWidth<T>, kParts = kWarpSize / kInputs;  // lanes that share an input
  const int lane = threadIdx.x % kWarpSize, input = lane % kInputs;
  ToyGdSeen<T> seen{};
#pragma unroll
  for (int i = 0; i < Shared::kWarps; ++i) seen.w += s.sums[i][input];
  if (lane < kInputs) s.own[warp][lane] = seen.w;
  __syncwarp();
  for (int a = warp * kWarpSize; a < p.batches * kWarpSize; a += warps * kWarpSize) {
    T* const mine = s.sample(a + lane);
    T f = T(0);
#pragma unroll
    for (int j = 0; j < kInputs; j += kPack) {
      const auto row = load_pack<kPack>(mine + j);
      const auto w = load_pack<kPack>(s.own[warp] + j);
#pragma unroll
      for (int e = 0; e < kPack; ++e) f += row[e] * w[e];
    }
    const T r = f * p.inverse_root_width - s.target(mine);
    s.residual(mine) = r;
    seen.squares += static_cast<double>(r) * static_cast<double>(r);
    __syncwarp();
#pragma unroll 4
    for (int c = lane / kInputs; c < kWarpSize; c += kParts) {
      T* const sample = s.sample(a + c);
      seen.zeta += sample[input] * s.residual(sample);
    }
  }
  seen.zeta = warp_fold<kInputs>(seen.zeta);
  seen.squares = warp_sum(seen.squares);
  return seen;
}

// From the sums over the rows, behind a barrier, to zeta and the decision, before a barrier. The
// first warp works alone where its lanes hold all samples.
template <typename T, int kInputs>
__device__ void toy_gd_look(const ToyGdParams<T>& p, ToyGdShared<T, kInputs>& s, T rate) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int input = lane % kInputs, warps = p.lookers;
  ToyGdSeen<T> seen;
  if (warp < warps) seen = toy_gd_samples(p, s, warp, warps);
  if (warps > 1) {
    if (lane < kInputs) s.own[warp][lane] = seen.zeta;
    if (lane == 0) s.losses[warp] = seen.squares;
    __syncthreads();
    if (warp == 0) {
      for (int i = 1; i < warps; ++i) {
        seen.zeta += s.own[i][input];
        seen.squares += s.losses[i];
      }
    }
  }
  if (warp > 0) return;
  const T zeta = seen.zeta * static_cast<T>(p.inverse_samples);
  if (lane < kInputs) s.zeta[lane] = zeta;
  const double v2 = s.norm(), e = static_cast<double>(rate);
  const double z = static_cast<double>(zeta), w = static_cast<double>(seen.w);
  const double change = warp_sum<kInputs>(e * (e * v2 * z * z - 2.0 * w * z));
  if (lane == 0) toy_gd_decide(p, s, seen.squares, v2, change);
}

// X, y and what the first look needs, in shared memory; the cut of the replica's record.
template <typename T, int kInputs>
__device__ void toy_gd_begin(const ToyGdParams<T>& p, ToyGdShared<T, kInputs>& s,
                             const ToyGdRegisters<T, kInputs>& rows) {
  using Shared = ToyGdShared<T, kInputs>;
  const int threads = blockDim.x;
  double xx = 0.0, yy = 0.0, u2 = 0.0, v2 = 0.0;
  for (int i = threadIdx.x; i < p.batches * kWarpSize * Shared::kPitch; i += threads) {
    const int a = i / Shared::kPitch, j = i % Shared::kPitch;
    const bool real = in_bounds(a < p.samples);
    const T x = real && in_bounds(j < p.inputs) ? p.x[a * p.inputs + j] : T(0);
    const T y = real && j == kInputs ? p.y[a] : T(0);
    s.sample(0)[i] = x + y;
    xx += static_cast<double>(x) * static_cast<double>(x);
    yy += static_cast<double>(y) * static_cast<double>(y);
  }
  rows.norms(u2, v2);
  // also of the warps that are not there
  T* const sums = s.sums[0];
  double* const norms_of_v = s.v2[0];
  for (int i = threadIdx.x; i < Shared::kWarps * kInputs; i += threads) sums[i] = T(0);
  for (int i = threadIdx.x; i < Shared::kWarps * Shared::kParts; i += threads) norms_of_v[i] = 0.0;
  if (threadIdx.x < kInputs) s.zeta[threadIdx.x] = T(0);
  const ToyDataNorms norms{block_sum(xx, s.losses), block_sum(yy, s.losses)};
  u2 = block_sum(u2, s.losses);
  v2 = block_sum(v2, s.losses);
  if (threadIdx.x > 0) return;
  const int64_t replica = p.first + blockIdx.x;
  s.u2 = u2;
  s.t = s.next_curvature = 0;
  s.gram = p.grams + replica * p.curvatures * ToyCurvatureSizes(p.samples, p.inputs, true).stored();
  s.record = toy_gd_record(p, replica, norms, u2, v2);
}

// Two blocks a multiprocessor, where the compiler manages that without spilling.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
constexpr int kToyGdFloatBlocks = 2;
#else
constexpr int kToyGdFloatBlocks = 1;
#endif

template <typename T, int kInputs>
__global__ void __launch_bounds__(kToyGdMaxThreads, sizeof(T) == 4 ? kToyGdFloatBlocks : 1)
    toy_gd_registers_kernel(const ToyGdParams<T> p) {
  static_assert(sizeof(ToyGdShared<T, kInputs>) <=
                kToyGdSharedBytes + (2 * kToyGdMaxThreads / kWarpSize + 1) * kInputs * sizeof(T));
  CATAPULT_DYNAMIC_SMEM(unsigned char, smem);
  auto& s = *reinterpret_cast<ToyGdShared<T, kInputs>*>(smem);
  ToyGdRegisters<T, kInputs> rows;
  rows.load(p);
  toy_gd_begin(p, s, rows);
  const T rate = toy_gd_rate(p, p.first + blockIdx.x);
  rows.advance(s, T(0));  // nothing moves: w and |v|^2 of the weights as they are
  for (;;) {
    __syncthreads();
    toy_gd_look(p, s, rate);
    __syncthreads();
    if (s.curvature) rows.record(p, s);
    if (s.ends) break;
    rows.advance(s, -rate);
  }
  rows.store(p);
}

}  // namespace catapult::device
