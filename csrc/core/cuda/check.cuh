// CUDA errors become catapult::Error with the op's name.
#pragma once

#include "core/cuda/runtime.cuh"
#include "core/error.hpp"

namespace catapult::device {

inline void check_cuda(cudaError_t error, const char* op, const char* what) {
  if (error == cudaErrorInsufficientDriver)
    fail_runtime(op,
                 "the NVIDIA driver is missing, or too old for the CUDA that catapult_ext was "
                 "built with (",
                 what, ": ", cudaGetErrorString(error),
                 "); update the driver, or reinstall catapult_ext with an older CUDA toolkit");
  if (error != cudaSuccess)
    fail_runtime(op, what, " failed: ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

// Makes `device` current for a scope. The destructor cannot throw, and restoring a device that was
// current before does not fail.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* op) {
    check_cuda(cudaGetDevice(&before_), op, "cudaGetDevice");
    changed_ = before_ != device;
    if (changed_) check_cuda(cudaSetDevice(device), op, "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace catapult::device
