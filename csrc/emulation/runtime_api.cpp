#include "emulation/runtime_api.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>

namespace {

constexpr int kDevices = 2;  // so that a device guard has something to guard
int current_device = 0;
std::string launches;

// CATAPULT_EMU_DRIVER=old: every call fails as under a driver that is older than the runtime.
bool driver_is_old() {
  const char* driver = std::getenv("CATAPULT_EMU_DRIVER");
  return driver != nullptr && std::strcmp(driver, "old") == 0;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  if (error == cudaErrorInsufficientDriver) return "cudaErrorInsufficientDriver";
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorInvalidDevice";
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInsufficientDriver)
    return "CUDA driver version is insufficient for CUDA runtime version";
  return error == cudaSuccess ? "no error" : "invalid device ordinal";
}

cudaError_t cudaGetDevice(int* device) {
  if (driver_is_old()) return cudaErrorInsufficientDriver;
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  using namespace catapult::emulation;
  if (driver_is_old()) return cudaErrorInsufficientDriver;
  if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(kSharedLimit);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 228 * 1024;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

namespace catapult::emulation {

size_t emulated_resident_blocks(size_t threads, size_t shared_bytes) {
  const size_t by_shared = 228 * 1024 / (shared_bytes + 1024), by_threads = 2048 / threads;
  return kMultiprocessors * std::min<size_t>({by_shared, by_threads, 32});
}

void log_launch(const GridConfig& c) {
  constexpr size_t kMost = 1 << 20;
  if (launches.size() > kMost) return;
  std::ostringstream line;
  line << c.op << " device=" << current_device << " stream=" << reinterpret_cast<size_t>(c.stream)
       << " grid=" << c.grid.x << "," << c.grid.y << "," << c.grid.z << " block=" << c.block.x
       << "," << c.block.y << "," << c.block.z << " shared=" << c.shared_bytes
       << " cooperative=" << c.cooperative << "\n";
  launches += line.str();
}

}  // namespace catapult::emulation

// For tests, through ctypes: one line per launch since the last call, and the current device.
extern "C" __attribute__((visibility("default"))) const char* catapult_emulation_launches() {
  static std::string text;
  text.swap(launches);
  launches.clear();
  return text.c_str();
}

extern "C" __attribute__((visibility("default"))) int catapult_emulation_device(int set) {
  if (set >= 0) cudaSetDevice(set);
  return current_device;
}
