#include "ops/gram/gram.hpp"

#include <string>

namespace catapult {
namespace {

constexpr const char* kOp = "gram";

struct Sizes {
  int64_t replicas, samples, outputs;
};

TensorView with_replicas(const TensorView& t) {
  check(t.ndim < TensorView::kMaxDims, kOp, "a tensor has ", t.ndim, " dimensions");
  TensorView out = t;
  out.ndim = t.ndim + 1;
  for (int i = 0; i < t.ndim; ++i) {
    out.size[i + 1] = t.size[i];
    out.stride[i + 1] = t.stride[i];
  }
  out.size[0] = 1;
  out.stride[0] = t.numel();
  return out;
}

GramArgs with_replicas(GramArgs args) {
  for (std::vector<TensorView>* side : {&args.a, &args.g, &args.a2, &args.g2})
    for (TensorView& t : *side) t = with_replicas(t);
  args.out = with_replicas(args.out);
  return args;
}

// Checks one side's factors against each other and returns its sizes.
Sizes check_side(const GramArgs& args, const std::vector<TensorView>& a,
                 const std::vector<TensorView>& g, const char* a_name, const char* g_name) {
  const size_t layers = args.a.size();
  check(a.size() == layers && g.size() == layers, kOp, a_name, " and ", g_name, " must have ",
        layers, " layers, got ", a.size(), " and ", g.size());
  const Sizes sizes{a[0].size[0], g[0].size[1], g[0].size[2]};
  for (size_t l = 0; l < layers; ++l) {
    const std::string at = "[" + std::to_string(l) + "]";
    const std::string a_at = a_name + at, g_at = g_name + at;
    check_dense(kOp, a_at.c_str(), a[l], 3, args.out.dtype);
    check_dense(kOp, g_at.c_str(), g[l], 4, args.out.dtype);
    check_size(kOp, a_at.c_str(), a[l], 0, args.a[0].size[0]);
    check_size(kOp, a_at.c_str(), a[l], 1, sizes.samples);
    check_size(kOp, a_at.c_str(), a[l], 2, args.a[l].size[2]);
    check_size(kOp, g_at.c_str(), g[l], 0, args.a[0].size[0]);
    check_size(kOp, g_at.c_str(), g[l], 1, sizes.samples);
    check_size(kOp, g_at.c_str(), g[l], 2, sizes.outputs);
    check_size(kOp, g_at.c_str(), g[l], 3, args.g[l].size[3]);
  }
  return sizes;
}

}  // namespace

void gram(const GramArgs& given, const Exec& exec) {
  const size_t layers = given.a.size();
  check(layers >= 1, kOp, "needs at least one layer");
  const GramArgs args = given.a[0].ndim == 2 ? with_replicas(given) : given;
  check(args.scale.size() == layers && args.bias.size() == layers, kOp, "scale and bias must have ",
        layers, " entries, got ", args.scale.size(), " and ", args.bias.size());
  check(args.a2.empty() == args.g2.empty(), kOp, "a2 and g2 belong together");
  const Sizes first = check_side(args, args.a, args.g, "a", "g");
  Sizes second = first;
  if (!args.symmetric()) {
    second = check_side(args, args.a2, args.g2, "a2", "g2");
    check(first.outputs == second.outputs, kOp, "g2 must have ", first.outputs,
          " outputs as g, got ", second.outputs);
  }
  const int64_t width = args.outputs == GramOutputs::kTrace ? 1 : first.outputs;
  if (args.outputs == GramOutputs::kDiagonal) {
    check(first.samples == second.samples, kOp, "outputs='diagonal' needs as many samples in a2, ",
          first.samples, ", got ", second.samples);
    check_dense(kOp, "out", args.out, 2, args.out.dtype);
  } else {
    check_dense(kOp, "out", args.out, 3, args.out.dtype);
    check_size(kOp, "out", args.out, 2, second.samples * width);
  }
  check_size(kOp, "out", args.out, 0, first.replicas);
  check_size(kOp, "out", args.out, 1, first.samples * width);
  if (args.out.numel() == 0) return;
  if (exec.on_cpu()) {
    gram_cpu(args, exec);
  } else {
    gram_cuda(args, exec);
  }
}

}  // namespace catapult
