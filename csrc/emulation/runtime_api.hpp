// The few functions of the CUDA runtime that core/cuda uses, for one small imagined device.
#pragma once

#include <cstddef>

#include "emulation/scheduler.hpp"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrL2CacheSize,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
using cudaStream_t = struct CUstream_st*;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind,
                            cudaStream_t stream);
constexpr int cudaMemcpyDeviceToDevice = 3;

namespace catapult::emulation {

constexpr size_t kSharedLimit = 227 * 1024;  // bytes a block may ask for, as on an H200
constexpr int kMultiprocessors = 4;          // few, so that persistent kernels stay small

size_t emulated_resident_blocks(size_t threads, size_t shared_bytes);
void log_launch(const GridConfig& config);

}  // namespace catapult::emulation
