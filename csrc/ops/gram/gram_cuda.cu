// PTX: mma.sync.aligned.m16n8k8, mma.sync.aligned.m8n8k4, cp.async.cg, ld.shared.v4

#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/gram/gram.hpp"
#include "ops/gram/gram_kernel.cuh"

namespace catapult {
namespace {

using device::FmaEngine;
using device::GramParams;
using device::TileShape;

constexpr const char* kOp = "gram";

// Large tiles reuse more, small ones spread small problems over the processors. With one
// tensor-core product per pair of values the L2 cache would limit the large tile: hence the wide
// one, where its shared memory is to be had.
using WideShape = TileShape<float, 128, 128, 4, 2>;
using LargeShape = TileShape<float, 128, 64, 4, 1>;
using SmallShape = TileShape<float, 32, 32, 2, 1>;
using LargeShape64 = TileShape<double, 64, 64, 4, 1>;
using SmallShape64 = TileShape<double, 32, 32, 2, 1>;

int as_int(int64_t value) {
  check(value <= INT32_MAX / 2, kOp, "sizes must be below 2^30 on a GPU, got ", value);
  return static_cast<int>(value);
}

template <typename Shape>
int64_t tile_count(int64_t rows, int64_t cols, bool symmetric) {
  const int64_t down = (rows + Shape::kRows - 1) / Shape::kRows;
  const int64_t across = (cols + Shape::kCols - 1) / Shape::kCols;
  constexpr int64_t step = Shape::kRows / Shape::kCols;
  return symmetric ? step * down * (down + 1) / 2 : down * across;
}

template <typename Shape>
size_t shared_bytes() {
  return sizeof(typename Shape::T) * (Shape::kSharedSize + Shape::kRows * Shape::kCols);
}

template <typename Engine, int kBlocksPerProcessor, bool kSeveral = false>
void launch_tiles(GramParams<typename Engine::T> params, const Exec& exec) {
  using Shape = typename Engine::Shape;
  params.tiles = as_int(tile_count<Shape>(params.rows, params.cols, params.symmetric));
  const int64_t blocks = int64_t{params.tiles} * params.replicas;
  check(blocks <= INT32_MAX, kOp, "too many tiles for one launch: ", blocks);
  params.row_tiles = (params.rows + Shape::kRows - 1) / Shape::kRows;
  params.col_tiles = (params.cols + Shape::kCols - 1) / Shape::kCols;
  device::launch(&device::gram_kernel<Engine, kBlocksPerProcessor, kSeveral>,
                 {kOp, exec, dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads),
                  shared_bytes<Shape>()},
                 params);
}

void launch_tiles_for(const GramParams<float>& params, GramPrecision precision, const Exec& exec) {
  // Several replicas fill the processors with small tiles.
  if (params.replicas > 1) return launch_tiles<FmaEngine<SmallShape>, 4, true>(params, exec);
  const device::DeviceFacts facts = device::device_facts(exec, kOp);
  if (precision == GramPrecision::kTf32) {
    const int64_t wide = tile_count<WideShape>(params.rows, params.cols, params.symmetric);
    // The row and column tables are static shared memory, and count too.
    const size_t wide_bytes = shared_bytes<WideShape>() + 2048;
    if (wide >= facts.multiprocessors && wide_bytes <= static_cast<size_t>(facts.shared_per_block))
      return launch_tiles<device::Tf32Engine<WideShape, false>, 1>(params, exec);
    return launch_tiles<device::Tf32Engine<LargeShape, false>, 2>(params, exec);
  }
  if (precision == GramPrecision::kTf32x3)
    return launch_tiles<device::Tf32Engine<LargeShape, true>, 2>(params, exec);
  const int64_t large = tile_count<LargeShape>(params.rows, params.cols, params.symmetric);
  if (large >= facts.multiprocessors) return launch_tiles<FmaEngine<LargeShape>, 2>(params, exec);
  launch_tiles<FmaEngine<SmallShape>, 4>(params, exec);
}

void launch_tiles_for(const GramParams<double>& params, GramPrecision, const Exec& exec) {
  if (params.replicas > 1)
    return launch_tiles<device::F64Engine<SmallShape64>, 2, true>(params, exec);
  const int64_t large = tile_count<LargeShape64>(params.rows, params.cols, params.symmetric);
  if (large >= device::device_facts(exec, kOp).multiprocessors)
    return launch_tiles<device::F64Engine<LargeShape64>, 2>(params, exec);
  launch_tiles<device::F64Engine<SmallShape64>, 2>(params, exec);
}

// Layers [first, first + kGramLayers) of the problem.
template <typename T>
GramParams<T> params_from(const GramArgs& args, size_t first) {
  const bool self = args.symmetric(), trace = args.outputs == GramOutputs::kTrace;
  GramParams<T> params{};
  for (size_t l = first; l < args.a.size() && l < first + device::kGramLayers; ++l) {
    const TensorView &a = args.a[l], &g = args.g[l];
    const TensorView &a2 = self ? a : args.a2[l], &g2 = self ? g : args.g2[l];
    const int64_t p = trace ? g.size[2] * g.size[3] : g.size[3];
    params.layers[params.layer_count++] = {a.as<T>(),
                                           a2.as<T>(),
                                           g.as<T>(),
                                           g2.as<T>(),
                                           as_int(a.size[2]),
                                           as_int(p),
                                           static_cast<T>(args.scale[l]),
                                           static_cast<T>(args.bias[l])};
  }
  params.replicas = as_int(args.replicas());
  params.rows = as_int(args.out.size[1]);
  params.cols = as_int(args.out.ndim == 3 ? args.out.size[2] : args.out.size[1]);
  params.outputs = trace ? 1 : as_int(args.g[0].size[2]);
  params.symmetric = self;
  params.accumulate = first > 0;
  params.out = args.out.as<T>();
  return params;
}

}  // namespace

void gram_cuda(const GramArgs& args, const Exec& exec) {
  dispatch_float(args.out.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (size_t first = 0; first < args.a.size(); first += device::kGramLayers) {
      const GramParams<T> params = params_from<T>(args, first);
      if (args.outputs != GramOutputs::kDiagonal) {
        launch_tiles_for(params, args.precision, exec);
        continue;
      }
      constexpr int64_t kThreads = 256, kRows = kThreads / device::kWarpSize;
      const int64_t blocks = (int64_t{params.replicas} * params.rows + kRows - 1) / kRows;
      check(blocks <= INT32_MAX, kOp, "too many rows for one launch: ", blocks);
      device::launch(&device::gram_diagonal_kernel<T>,
                     {kOp, exec, dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, params);
    }
  });
}

}  // namespace catapult
