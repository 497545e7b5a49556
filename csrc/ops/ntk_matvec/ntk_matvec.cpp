#include "ops/ntk_matvec/ntk_matvec.hpp"

#include <string>

namespace catapult {
namespace {

constexpr const char* kOp = "ntk_matvec";

void check_layer(const NtkMatvecArgs& args, size_t l, int64_t replicas, int64_t samples) {
  const std::string at = "[" + std::to_string(l) + "]";
  const std::string weight = "weights" + at, input = "inputs" + at, slope = "slopes" + at;
  const TensorView& w = args.weights[l];
  check_dense(kOp, weight.c_str(), w, 3, args.v.dtype);
  check_size(kOp, weight.c_str(), w, 0, replicas);
  if (l > 0) check_size(kOp, weight.c_str(), w, 2, args.weights[l - 1].size[1]);
  check_dense(kOp, input.c_str(), args.inputs[l], 3, args.v.dtype);
  check_size(kOp, input.c_str(), args.inputs[l], 0, replicas);
  check_size(kOp, input.c_str(), args.inputs[l], 1, samples);
  check_size(kOp, input.c_str(), args.inputs[l], 2, w.size[2]);
  if (l + 1 < args.weights.size()) {
    check_dense(kOp, slope.c_str(), args.slopes[l], 3, args.v.dtype);
    check_size(kOp, slope.c_str(), args.slopes[l], 0, replicas);
    check_size(kOp, slope.c_str(), args.slopes[l], 1, samples);
    check_size(kOp, slope.c_str(), args.slopes[l], 2, w.size[1]);
  }
  if (args.in_sample_space(l)) {
    const std::string gram = "grams" + at;
    check_dense(kOp, gram.c_str(), args.grams[l], 3, args.v.dtype);
    check_size(kOp, gram.c_str(), args.grams[l], 0, replicas);
    check_size(kOp, gram.c_str(), args.grams[l], 1, samples);
    check_size(kOp, gram.c_str(), args.grams[l], 2, samples);
  }
}

}  // namespace

void ntk_matvec(const NtkMatvecArgs& args, const Exec& exec) {
  const size_t layers = args.weights.size();
  check(layers >= 1, kOp, "needs at least one layer");
  check(args.inputs.size() == layers && args.grams.size() == layers &&
            args.scale.size() == layers && args.bias.size() == layers &&
            args.slopes.size() + 1 == layers,
        kOp, "inputs, grams, scale and bias must list ", layers, " layers and slopes one less");
  check_dense(kOp, "v", args.v, 3, args.v.dtype);
  check_dense(kOp, "out", args.out, 3, args.v.dtype);
  for (int i = 0; i < 3; ++i) check_size(kOp, "out", args.out, i, args.v.size[i]);
  check_dense(kOp, "inputs[0]", args.inputs[0], 3, args.v.dtype);
  check_dense(kOp, "weights", args.weights.back(), 3, args.v.dtype);
  const int64_t replicas = args.v.size[0], samples = args.inputs[0].size[1];
  check_size(kOp, "v", args.v, 1, samples * args.weights.back().size[1]);
  std::vector<int64_t> p, d, in_sample_space;
  for (size_t l = 0; l < layers; ++l) {
    check_layer(args, l, replicas, samples);
    p.push_back(args.weights[l].size[1]);
    d.push_back(args.weights[l].size[2]);
    in_sample_space.push_back(args.in_sample_space(l));
  }
  if (args.out.numel() == 0) return;
  check_dense(kOp, "workspace", args.workspace, 1, args.v.dtype);
  const int64_t need =
      replicas * args.v.size[2] * ntk_matvec_layout(samples, p, d, in_sample_space).size;
  check(args.workspace.size[0] >= need, kOp, "workspace needs ", need, " elements, got ",
        args.workspace.size[0]);
  if (exec.on_cpu()) {
    ntk_matvec_cpu(args, exec);
  } else {
    ntk_matvec_cuda(args, exec);
  }
}

}  // namespace catapult
