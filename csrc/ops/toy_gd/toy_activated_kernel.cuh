// The network with an activation, on the same blocks as the linear one. A thread takes one row of U
// after the other: z = U x eight samples at a time, its gradient eight inputs at a time, so that a
// load of the row, or of phi'(z), serves eight sums. All lanes of a warp want the same entries of
// X: those of eight samples, or inputs, lie next to each other in shared memory and are read 16
// bytes at a time. phi'(z) waits in between in the thread's own scratch.
#pragma once

#include "core/cuda/vec_io.cuh"
#include "ops/toy_gd/toy_activated_config.hpp"
#include "ops/toy_gd/toy_gd_block.cuh"

namespace catapult::device {

// The Rows of toy_gd_run. kStaged: X is in shared memory.
template <typename T, bool kStaged>
struct ToyActivatedRows {
  static constexpr bool kLinear = false;
  static constexpr int kChunk = kToyActivatedChunk;
  T *by_sample, *by_input;  // X in shared memory, in rows of these lengths
  int padded_inputs, padded_samples;
  T* scratch;  // of the block

  // Entry i of this thread's scratch.
  __device__ T& mine(int i) const { return scratch[int64_t{i} * blockDim.x + threadIdx.x]; }

  __device__ T* stage(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) {
    scratch = p.scratch + int64_t{blockIdx.x} * kToyActivatedScratch * p.samples * blockDim.x;
    by_sample = b.sums + toy_activated_vectors(p.samples);
    if (!kStaged) return by_sample;
    padded_inputs = static_cast<int>(toy_activated_padded(p.inputs));
    padded_samples = static_cast<int>(toy_activated_padded(p.samples));
    by_input = by_sample + p.samples * padded_inputs;
    for (int i = threadIdx.x; i < p.samples * padded_inputs; i += blockDim.x) {
      const int a = i / padded_inputs, j = i % padded_inputs;
      by_sample[i] = in_bounds(j < p.inputs) ? p.x[a * p.inputs + j] : T(0);
    }
    for (int i = threadIdx.x; i < p.inputs * padded_samples; i += blockDim.x) {
      const int j = i / padded_samples, a = i % padded_samples;
      by_input[i] = in_bounds(a < p.samples) ? p.x[a * p.inputs + j] : T(0);
    }
    return by_input + p.inputs * padded_samples;
  }

  // sum[k] += factor x[k].
  __device__ static void add(T factor, const T* x, T (&sum)[kChunk]) {
    constexpr int kWidth = kPackWidth<T>;
#pragma unroll
    for (int k = 0; k < kChunk; k += kWidth) {
      const auto pack = load_pack<kWidth>(x + k);
#pragma unroll
      for (int w = 0; w < kWidth; ++w) sum[k + w] += factor * pack[w];
    }
  }

  // sum[k] = sum over i of factor(i) times entry `first` + k of row i, of X or, across, of X'. In
  // global memory the last entry of a row stands for those beyond.
  template <typename Factor>
  __device__ void multiply(const ToyGdParams<T>& p, bool across, int first, T (&sum)[kChunk],
                           Factor factor) const {
    const int count = across ? p.inputs : p.samples;
#pragma unroll
    for (int k = 0; k < kChunk; ++k) sum[k] = T(0);
    if constexpr (kStaged) {
      const int pitch = across ? padded_samples : padded_inputs;
      const T* x = (across ? by_input : by_sample) + first;
#pragma unroll 4
      for (int i = 0; i < count; ++i, x += pitch) add(factor(i), x, sum);
    } else {
      const int last = (across ? p.samples : p.inputs) - 1;
      const int64_t row = across ? 1 : p.inputs, column = across ? p.inputs : 1;
      const T* x[kChunk];
#pragma unroll
      for (int k = 0; k < kChunk; ++k) x[k] = p.x + min(first + k, last) * column;
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        const T weight = factor(i);
#pragma unroll
        for (int k = 0; k < kChunk; ++k) sum[k] += weight * x[k][i * row];
      }
    }
  }
  __device__ void follow(const ToyGdParams<T>&, const ToyGdBlock<T>&) const {}

  // z of one row for the samples from `first` on; what lies beyond the last one is not used.
  __device__ void products(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, const T* row, int first,
                           T (&z)[kChunk]) const {
    multiply(p, true, first, z, [&](int j) { return row[j * b.input_stride]; });
  }

  // phi and phi' of one row, handed to put(sample, value, slope).
  template <typename Put>
  __device__ void activate_row(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, const T* row,
                               Put put) const {
    for (int first = 0; first < p.samples; first += kChunk) {
      T z[kChunk];
      products(p, b, row, first, z);
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        if (first + k >= p.samples) continue;
        const auto phi = activate(p.phi.kind, static_cast<T>(p.phi.slope), z[k]);
        put(first + k, phi.value, phi.slope);
      }
    }
  }

  // One step of one row and its v, which is returned; u2 gains the row's square.
  __device__ T move(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, T* row, T old,
                    double& u2) const {
    T along = T(0);
    activate_row(p, b, row, [&](int a, T value, T slope) {
      along += b.residual[a] * value;
      mine(a) = b.residual[a] * slope;
    });
    const T rate = b.rate / static_cast<T>(p.samples), pull = rate * old;
    for (int first = 0; first < p.inputs; first += kChunk) {
      T sum[kChunk];
      multiply(p, false, first, sum, [&](int a) { return mine(a); });
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        if (first + k >= p.inputs) continue;
        T* const entry = row + (first + k) * b.input_stride;
        *entry -= pull * sum[k];
        u2 += static_cast<double>(*entry) * static_cast<double>(*entry);
      }
    }
    return old - rate * along;
  }

  // The warps' shares of the outputs of the rows, after a step of each if kMove; returns this
  // thread's share of |v|^2.
  template <bool kMove>
  __device__ double advance(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, double& u2) const {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    double q = 0.0;
    for (int64_t base = 0; base == 0 || base < b.rows; base += blockDim.x) {
      const int64_t i = base + threadIdx.x;
      const bool here = in_bounds(i < b.rows);
      T* const row = b.u + i * b.row_stride;
      T fresh = T(0);
      if (here) {
        fresh = b.v[i];
        if (kMove) b.v[i] = fresh = move(p, b, row, fresh, u2);
        q += static_cast<double>(fresh) * static_cast<double>(fresh);
      }
      for (int first = 0; first < p.samples; first += kChunk) {
        T f[kChunk] = {};
        if (here) {
          products(p, b, row, first, f);
#pragma unroll
          for (int k = 0; k < kChunk; ++k)
            f[k] = fresh * activate(p.phi.kind, static_cast<T>(p.phi.slope), f[k]).value;
        }
        const T total = warp_transpose_sum(f);
        const int a = first + lane;
        if (lane < kChunk && in_bounds(a < p.samples)) {
          T* const slot = b.sums + warp * p.sums + a;
          *slot = base == 0 ? total : *slot + total;
        }
      }
    }
    return q;
  }

  __device__ double start(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) const {
    double unused = 0.0;
    return advance<false>(p, b, unused);
  }
  __device__ double step(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, double& u2) const {
    u2 = 0.0;
    return advance<true>(p, b, u2);
  }

  // The residuals; returns the loss to every thread.
  __device__ T observe(const ToyGdParams<T>& p, const ToyGdBlock<T>& b) const {
    double squares = 0.0;
    for (int a = threadIdx.x; a < p.samples; a += blockDim.x) {
      const T r = b.w[a] * p.inverse_root_width - p.y[a];
      b.residual[a] = r;
      squares += static_cast<double>(r) * static_cast<double>(r);
    }
    return static_cast<T>(block_sum(squares, b.scratch) / (2.0 * p.samples));
  }

  // N W times the kernel of the block's rows: a chunk of rows leaves phi and v phi' in scratch,
  // then a thread adds up pairs of samples.
  __device__ void record(const ToyGdParams<T>& p, const ToyGdBlock<T>& b, double* out) const {
    const int n = p.samples;
    for (int64_t base = 0; base == 0 || base < b.rows; base += blockDim.x) {
      const int64_t i = base + threadIdx.x;
      const bool here = in_bounds(i < b.rows);
      const T v = here ? b.v[i] : T(0);
      for (int a = 0; a < 2 * n && !here; ++a) mine(a) = T(0);
      if (here)
        activate_row(p, b, b.u + i * b.row_stride, [&](int a, T value, T slope) {
          mine(a) = value;
          mine(n + a) = v * slope;
        });
      __syncthreads();
      for (int e = threadIdx.x; e < n * n; e += blockDim.x) {
        const int a = e / n, c = e % n;
        if (c > a) continue;
        double values = 0.0, slopes = 0.0;
        const int64_t threads = blockDim.x;
        const T *const ha = scratch + a * threads, *const hc = scratch + c * threads;
        const T *const ga = ha + n * threads, *const gc = hc + n * threads;
        for (int t = 0; t < blockDim.x; ++t) {
          values += static_cast<double>(ha[t]) * static_cast<double>(hc[t]);
          slopes += static_cast<double>(ga[t]) * static_cast<double>(gc[t]);
        }
        const double both =
            values + slopes * toy_inner(p.x + a * p.inputs, p.x + c * p.inputs, p.inputs);
        out[e] = base == 0 ? both : out[e] + both;
        out[c * n + a] = out[e];
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) out[n * n] = 0.0;
  }
};

template <typename T, bool kStaged>
__global__ void __launch_bounds__(kToyGdMaxThreads, 1)
    toy_activated_kernel(const ToyGdParams<T> p) {
  CATAPULT_DYNAMIC_SMEM(unsigned char, smem);
  toy_gd_run<ToyActivatedRows<T, kStaged>>(p, smem + kToyGdRecordBytes, toy_record<T>(smem));
}

}  // namespace catapult::device
