// One planted fault for each tool of compute-sanitizer: a tool that does not find its own has not
// looked. faults memcheck|racecheck|synccheck|initcheck|none
#include <cstdio>
#include <cstring>

#include <cuda_runtime.h>

__global__ void memcheck(float* x) { x[threadIdx.x + 1] = 1.0f; }

__global__ void racecheck(float* x) {
  __shared__ float shared[64];
  shared[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = shared[63 - threadIdx.x];  // the other warp may not have written it yet
}

__global__ void synccheck(float* x) {
  if (threadIdx.x < 16) __syncthreads();  // half of a warp
  x[threadIdx.x] = 1.0f;
}

__global__ void initcheck(float* x) { x[threadIdx.x] += 1.0f; }

__global__ void none(float* x) { x[threadIdx.x] = 1.0f; }

int main(int argc, char** argv) {
  float* x = nullptr;
  if (argc != 2 || cudaMalloc(&x, 64 * sizeof(float)) != cudaSuccess) return 2;
  const char* const names[] = {"memcheck", "racecheck", "synccheck", "initcheck", "none"};
  void (*const kernels[])(float*) = {memcheck, racecheck, synccheck, initcheck, none};
  for (int i = 0; i < 5; ++i) {
    if (std::strcmp(argv[1], names[i]) != 0) continue;
    if (i != 3) cudaMemset(x, 0, 64 * sizeof(float));
    kernels[i]<<<1, 64>>>(x);
    cudaDeviceSynchronize();
    std::printf("%s ran\n", names[i]);
    return 0;
  }
  return 2;
}
