// The one way to start a kernel: on the caller's stream and device, checked, without synchronising.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <tuple>

#include "core/cuda/check.cuh"
#include "core/cuda/runtime.cuh"
#include "core/exec.hpp"

namespace catapult::device {

struct LaunchConfig {
  const char* op;
  const Exec& exec;
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;   // dynamic
  bool cooperative = false;  // all blocks resident, grid_sync() allowed (core/cuda/grid.cuh)
};

inline cudaStream_t stream_of(const Exec& exec) {
  return reinterpret_cast<cudaStream_t>(static_cast<uintptr_t>(exec.stream));
}

#ifndef CATAPULT_EMULATED
// The limit belongs to kernel and device, not to a launch: it only grows, so that threads which
// launch the same kernel at once cannot take each other's away.
inline void allow_shared(const void* kernel, size_t bytes, const char* op) {
  if (bytes <= 48 * 1024) return;
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  cudaFuncAttributes now{};
  check_cuda(cudaFuncGetAttributes(&now, kernel), op, "asking for shared memory");
  if (static_cast<size_t>(now.maxDynamicSharedSizeBytes) < bytes)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)),
               op, "asking for shared memory");
}
#endif

// launch(kernel, {"gram", exec, grid, block, shared}, params). A grid without blocks does nothing.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), const LaunchConfig& c, const Args&... args) {
  if (c.grid.x == 0 || c.grid.y == 0 || c.grid.z == 0) return;
  const DeviceGuard guard(c.exec.device, c.op);
#ifdef CATAPULT_EMULATED
  const std::tuple<Params...> values(static_cast<Params>(args)...);
  const auto run = [&](const auto&... value) {
    const void* const addresses[] = {&value...};
    emulation::run_grid({c.op, c.grid, c.block, c.shared_bytes, c.cooperative, stream_of(c.exec),
                         reinterpret_cast<const void*>(kernel), addresses},
                        [&] { kernel(value...); });
  };
  std::apply(run, values);
#else
  allow_shared(reinterpret_cast<const void*>(kernel), c.shared_bytes, c.op);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = c.grid;
  config.blockDim = c.block;
  config.dynamicSmemBytes = c.shared_bytes;
  config.stream = stream_of(c.exec);
  config.attrs = &attribute;
  config.numAttrs = c.cooperative ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), c.op,
             "kernel launch");
#endif
}

// Blocks of a cooperative launch that fit on the device at once.
template <typename... Params>
int resident_blocks(void (*kernel)(Params...), const Exec& exec, int threads, size_t shared_bytes,
                    const char* op) {
#ifdef CATAPULT_EMULATED
  (void)kernel, (void)exec, (void)op;
  return static_cast<int>(emulation::emulated_resident_blocks(threads, shared_bytes));
#else
  const DeviceGuard guard(exec.device, op);
  allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes, op);
  int per_multiprocessor = 0, multiprocessors = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads,
                                                           shared_bytes),
             op, "occupancy query");
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, exec.device),
             op, "device query");
  return per_multiprocessor * multiprocessors;
#endif
}

struct DeviceFacts {
  int multiprocessors;
  int shared_per_block;  // most dynamic shared memory a block may ask for
  int l2_bytes;
};

inline DeviceFacts device_facts(const Exec& exec, const char* op) {
  DeviceFacts facts{};
  const auto ask = [&](int* value, auto attribute) {
    check_cuda(cudaDeviceGetAttribute(value, attribute, exec.device), op, "device query");
  };
  ask(&facts.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&facts.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(&facts.l2_bytes, cudaDevAttrL2CacheSize);
  return facts;
}

}  // namespace catapult::device
