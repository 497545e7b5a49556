// Where and how an op runs; the binding fills it from what Python passes.
#pragma once

#include <cstdint>

namespace catapult {

struct Exec {
  int device = -1;     // -1: CPU, otherwise the CUDA ordinal
  int64_t stream = 0;  // cudaStream_t of the caller
  int threads = 1;     // CPU threads, torch.get_num_threads()

  bool on_cpu() const { return device < 0; }
};

}  // namespace catapult
