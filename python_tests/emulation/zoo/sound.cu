// Correct kernels, one for each thing the emulation has to get right.
#include "core/cuda/atomics.cuh"
#include "core/cuda/grid.cuh"
#include "core/cuda/mma.cuh"
#include "core/cuda/reduce.cuh"
#include "core/cuda/vec_io.cuh"
#include "harness.hpp"

using namespace catapult::device;

namespace {

struct Io {
  const float* in;
  float* out;
  int n;
};

__global__ void dot_kernel(Io p) {
  CATAPULT_DYNAMIC_SMEM(double, scratch);
  double sum = 0.0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += gridDim.x * blockDim.x)
    sum += double(p.in[i]) * p.in[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) atomic_add(p.out, float(sum));
}

template <int kTile>
__global__ void gram_kernel(Io p) {  // out (n, n) = in (n, n) in'
  __shared__ float a[kTile][kTile + 1];
  __shared__ float b[kTile][kTile + 1];
  const int row = blockIdx.y * kTile + threadIdx.y, col = blockIdx.x * kTile + threadIdx.x;
  float sum = 0.0f;
  for (int k0 = 0; k0 < p.n; k0 += kTile) {
    const int k = k0 + threadIdx.x, other = blockIdx.x * kTile + threadIdx.y;
    a[threadIdx.y][threadIdx.x] = in_bounds(row < p.n && k < p.n) ? p.in[row * p.n + k] : 0.0f;
    b[threadIdx.y][threadIdx.x] = in_bounds(other < p.n && k < p.n) ? p.in[other * p.n + k] : 0.0f;
    __syncthreads();
    for (int i = 0; i < kTile; ++i) sum += a[threadIdx.y][i] * b[threadIdx.x][i];
    __syncthreads();
  }
  if (in_bounds(row < p.n && col < p.n)) p.out[row * p.n + col] = sum;
}

__global__ void warp_kernel(Io p) {  // counts disagreements in out[0]
  const int lane = threadIdx.x % 32;
  int bad = 0;
  bad += __shfl_sync(kFullMask, lane, 5) != 5;
  bad += __shfl_sync(kFullMask, lane, 5, 8) != (lane & ~7) + 5;
  bad += __shfl_xor_sync(kFullMask, lane, 3) != (lane ^ 3);
  bad += __shfl_down_sync(kFullMask, lane, 4) != (lane + 4 < 32 ? lane + 4 : lane);
  bad += __shfl_up_sync(kFullMask, lane, 4, 16) != (lane % 16 >= 4 ? lane - 4 : lane);
  bad += __ballot_sync(kFullMask, lane % 3 == 0) != 0x49249249u;
  bad += !__any_sync(kFullMask, lane == 7) || __any_sync(kFullMask, lane == 40);
  bad += !__all_sync(kFullMask, lane < 32) || __all_sync(kFullMask, lane < 31);
  bad += warp_sum(1.5) != 48.0 || warp_max<8>(lane) != (lane | 7);
  if (lane < 16) {  // two groups of lanes, each with its own mask
    bad += __shfl_xor_sync(0x0000ffffu, lane, 1) != (lane ^ 1);
    bad += __shfl_xor_sync(0x0000ffffu, lane, 2) != (lane ^ 2);
  } else {
    bad += __shfl_xor_sync(0xffff0000u, lane, 4) != (lane ^ 4);
  }
  bad += __syncthreads_count(threadIdx.x < 40) != 40;
  bad += !__syncthreads_and(1) || __syncthreads_and(threadIdx.x != 3);
  bad += !__syncthreads_or(threadIdx.x == 3) || __syncthreads_or(0);
  if (lane >= 8) return;  // exited lanes and threads no longer count
  bad += __shfl_xor_sync(kFullMask, lane, 1) != (lane ^ 1);
  __syncthreads();
  atomic_add(p.out, float(bad));
}

__global__ void cooperative_kernel(Io p) {  // each block sums what the blocks before it wrote
  __shared__ float mine;
  if (threadIdx.x == 0) mine = p.in[blockIdx.x];
  __syncthreads();
  for (int step = 0; step < 3; ++step) {
    if (threadIdx.x == 1) p.out[step * gridDim.x + blockIdx.x] = mine + float(step);
    grid_sync();
    float sum = 0.0f;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += p.out[step * gridDim.x + i];
    __syncthreads();
    if (threadIdx.x == 0) mine = sum;
    __syncthreads();
  }
  if (threadIdx.x == 2) p.out[3 * gridDim.x + blockIdx.x] = mine;
}

struct Flags {
  int* flag;
  float* value;
};

__global__ void flag_kernel(Flags p) {  // a chain of blocks, each waits for the one before
  if (threadIdx.x != 0) return;
  const int block = blockIdx.x;
  if (block > 0)
    while (load_acquire(p.flag + block - 1) == 0) {
    }
  p.value[block] = block == 0 ? 1.0f : 2.0f * p.value[block - 1];
  store_release(p.flag + block, 1);
}

__global__ void pipeline_kernel(Io p) {  // out = in reversed within tiles of 128, two stages
  __shared__ __align__(16) float tile[2][128];
  const int tiles = p.n / 128, at = threadIdx.x * 4;
  copy_async<16>(&tile[0][at], p.in + at);
  copy_commit();
  for (int t = 0; t < tiles; ++t) {
    const bool more = t + 1 < tiles;
    copy_async<16>(&tile[(t + 1) % 2][at], p.in + (more ? (t + 1) * 128 + at : 0), more);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    Pack<float, 4> reversed;
    for (int i = 0; i < 4; ++i) reversed[i] = tile[t % 2][127 - at - i];
    store_pack(p.out + t * 128 + at, reversed);
    __syncthreads();
  }
  copy_wait<0>();
}

struct Mma {
  const float *a, *b;
  float *tf32, *three;
  double* f64;
};

__global__ void mma_kernel(Mma p) {  // A (16 x 8), B (8 x 8) row-major
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const float raw_a[4] = {p.a[g * 8 + t], p.a[(g + 8) * 8 + t], p.a[g * 8 + t + 4],
                          p.a[(g + 8) * 8 + t + 4]};
  const float raw_b[2] = {p.b[t * 8 + g], p.b[(t + 4) * 8 + g]};
  float high_a[4], low_a[4], high_b[2], low_b[2], one[4] = {}, three[4] = {};
  for (int i = 0; i < 4; ++i) split_tf32(raw_a[i], high_a[i], low_a[i]);
  for (int i = 0; i < 2; ++i) split_tf32(raw_b[i], high_b[i], low_b[i]);
  mma_tf32(one, high_a, high_b);
  mma_3xtf32(three, high_a, low_a, high_b, low_b);
  double f64[2] = {};
  for (int k = 0; k < 8; k += 4)
    mma_f64(f64, double(p.a[g * 8 + k + t]), double(p.b[(k + t) * 8 + g]));
  for (int i = 0; i < 4; ++i) {
    const int at = (g + 8 * (i / 2)) * 8 + 2 * t + i % 2;
    p.tf32[at] = one[i];
    p.three[at] = three[i];
    if (i < 2) p.f64[at] = f64[i];
  }
}

}  // namespace

ZOO(dot) {
  const std::vector<float> in = zoo::numbers(1000);
  float out = 0.0f, exact = 0.0f;
  for (float x : in) exact += x * x;
  zoo::run(dot_kernel, dim3(3), dim3(128), Io{in.data(), &out, 1000}, 4 * sizeof(double));
  return out == exact;
}

ZOO(gram) {
  const int n = 37;
  const std::vector<float> in = zoo::numbers(n * n);
  std::vector<float> out(n * n);
  zoo::run(gram_kernel<16>, dim3(3, 3), dim3(16, 16), Io{in.data(), out.data(), n});
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      float sum = 0.0f;
      for (int k = 0; k < n; ++k) sum += in[i * n + k] * in[j * n + k];
      if (sum != out[i * n + j]) return false;
    }
  return true;
}

ZOO(warp) {
  float bad = 0.0f;
  zoo::run(warp_kernel, dim3(2), dim3(64), Io{nullptr, &bad, 0});
  return bad == 0.0f;
}

ZOO(cooperative) {
  const std::vector<float> in = {1, 2, 3, 4};
  std::vector<float> out(16);
  zoo::run(cooperative_kernel, dim3(4), dim3(64), Io{in.data(), out.data(), 0}, 0, true);
  // 10; then 4 * (10 + 1) = 44; then 4 * (44 + 2) = 184.
  return out[12] == 184 && out[13] == 184 && out[14] == 184 && out[15] == 184;
}

ZOO(flags) {
  std::vector<int> flag(4);
  std::vector<float> value(4);
  zoo::run(flag_kernel, dim3(4), dim3(32), Flags{flag.data(), value.data()}, 0, true);
  return value[3] == 8.0f;
}

ZOO(pipeline) {
  std::vector<float> in = zoo::numbers(512 + 4), out(512 + 4);
  const size_t shift = (16 - reinterpret_cast<uintptr_t>(in.data()) % 16) / 4 % 4;
  const size_t shift_out = (16 - reinterpret_cast<uintptr_t>(out.data()) % 16) / 4 % 4;
  zoo::run(pipeline_kernel, dim3(1), dim3(32), Io{in.data() + shift, out.data() + shift_out, 512});
  for (int i = 0; i < 512; ++i)
    if (out[shift_out + i] != in[shift + i / 128 * 128 + 127 - i % 128]) return false;
  return true;
}

ZOO(mma) {
  std::vector<float> a(128), b(64), one(128), three(128);
  std::vector<double> f64(64);
  for (int i = 0; i < 128; ++i) a[i] = std::sin(1.0f + i);
  for (int i = 0; i < 64; ++i) b[i] = std::cos(2.0f + i);
  zoo::run(mma_kernel, dim3(1), dim3(32),
           Mma{a.data(), b.data(), one.data(), three.data(), f64.data()});
  double worst_one = 0, worst_three = 0, worst_f64 = 0;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      double exact = 0;
      for (int k = 0; k < 8; ++k) exact += double(a[i * 8 + k]) * b[k * 8 + j];
      worst_one = std::fmax(worst_one, std::fabs(one[i * 8 + j] - exact));
      worst_three = std::fmax(worst_three, std::fabs(three[i * 8 + j] - exact));
      if (i < 8) worst_f64 = std::fmax(worst_f64, std::fabs(f64[i * 8 + j] - exact));
    }
  // TF32 keeps 11 bits; three products bring the error down to float32's.
  return worst_one > 1e-5 && worst_one < 4e-3 && worst_three < 2e-6 && worst_f64 < 1e-14;
}
