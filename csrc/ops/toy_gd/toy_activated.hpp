// The part of toy_gd for networks with an activation other than the linear one: any width, D and N.
#pragma once

#include "ops/toy_gd/toy_gd.hpp"

namespace catapult {

void toy_activated_cpu(const ToyGdArgs& args, const Exec& exec);
void toy_activated_cuda(const ToyGdArgs& args, const Exec& exec);
int64_t toy_activated_cuda_workspace(const ToyGdSizes& sizes, const Exec& exec);

}  // namespace catapult
