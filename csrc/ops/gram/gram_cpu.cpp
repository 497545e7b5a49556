#include <algorithm>
#include <utility>
#include <vector>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "core/scratch.hpp"
#include "ops/gram/gram.hpp"
#include "ops/gram/gram_simd.hpp"

namespace catapult {
namespace {

// The part of one replica, whose sizes are those of the tensor without the first.
template <typename T>
T* of(const TensorView& t, int64_t replica) {
  return t.as<T>() + replica * (t.numel() / t.size[0]);
}

// The trace over outputs is the kernel of one output whose g is all of them in a row.
template <typename T>
std::vector<GramLayer<T>> layers_of(const GramArgs& args, int64_t replica) {
  const bool self = args.symmetric(), trace = args.outputs == GramOutputs::kTrace;
  std::vector<GramLayer<T>> layers;
  for (size_t l = 0; l < args.a.size(); ++l) {
    const TensorView &a = args.a[l], &g = args.g[l];
    const TensorView &a2 = self ? a : args.a2[l], &g2 = self ? g : args.g2[l];
    const int64_t p = trace ? g.size[2] * g.size[3] : g.size[3];
    layers.push_back({of<T>(a, replica), of<T>(a2, replica), of<T>(g, replica), of<T>(g2, replica),
                      a.size[2], p, static_cast<T>(args.scale[l]), static_cast<T>(args.bias[l])});
  }
  return layers;
}

template <typename T>
double operations(const GramProblem<T>& problem) {
  double per_pair = 0.0;
  for (int64_t l = 0; l < problem.layer_count; ++l)
    per_pair += 2.0 * (problem.layers[l].p + problem.layers[l].d);
  return per_pair * problem.rows * problem.cols * (problem.symmetric ? 0.5 : 1.0);
}

template <typename T>
void run_blocks(const GramProblem<T>& problem, const GramKernels<T>& kernels, int threads) {
  threads = threads_for(operations(problem), threads);
  const GramConfig config =
      gram_cpu_config(problem.rows, problem.cols, problem.symmetric, sizeof(T), threads);
  // The diagonal blocks, half the work of the others, come last and even out the threads.
  std::vector<std::pair<int64_t, int64_t>> blocks, diagonal;
  for (int64_t row = 0; row < problem.rows; row += config.tile) {
    for (int64_t col = 0; col < problem.cols; col += config.tile) {
      if (problem.symmetric && col > row) break;
      (problem.symmetric && col == row ? diagonal : blocks).emplace_back(row, col);
    }
  }
  blocks.insert(blocks.end(), diagonal.begin(), diagonal.end());
  const int64_t count = static_cast<int64_t>(blocks.size());
  const int team = usable_threads(threads, count);
  const int64_t elements =
      gram_scratch(config, kernels.tile_rows, kernels.tile_cols, kernels.slack);
  const Scratch scratch(team, elements * static_cast<int64_t>(sizeof(T)));
  parallel_for(count, team, [&](int64_t i) {
    const int piece = piece_index(team);
    kernels.block(problem, config, blocks[i].first, blocks[i].second, scratch.piece<T>(piece));
  });
}

template <typename T>
void run_replica(const GramArgs& args, const GramKernels<T>& kernels, int64_t replica,
                 int threads) {
  const std::vector<GramLayer<T>> layers = layers_of<T>(args, replica);
  const bool trace = args.outputs == GramOutputs::kTrace;
  const GramProblem<T> problem{
      layers.data(),           static_cast<int64_t>(layers.size()), args.out.size[1],
      args.out.size[2],        trace ? 1 : args.g[0].size[2],       args.symmetric(),
      of<T>(args.out, replica)};
  if (args.outputs != GramOutputs::kDiagonal) {
    run_blocks(problem, kernels, threads);
    return;
  }
  constexpr int64_t kRows = 64;
  const int64_t pieces = (problem.rows + kRows - 1) / kRows;
  parallel_for(pieces, threads, [&](int64_t i) {
    kernels.diagonal(problem, i * kRows, std::min((i + 1) * kRows, problem.rows));
  });
}

}  // namespace

GramConfig gram_cpu_config(int64_t rows, int64_t cols, bool symmetric, int bytes, int threads) {
  const GramSimd& simd = CATAPULT_SELECT_ISA(gram_simd);
  const bool single = bytes == 4;
  const int tile_rows = single ? simd.f32.tile_rows : simd.f64.tile_rows;
  const int tile_cols = single ? simd.f32.tile_cols : simd.f64.tile_cols;
  return gram_config(rows, cols, symmetric, tile_rows, tile_cols, bytes, threads);
}

void gram_cpu(const GramArgs& args, const Exec& exec) {
  const GramSimd& simd = CATAPULT_SELECT_ISA(gram_simd);
  dispatch_float(args.out.dtype, "gram", [&](auto tag) {
    using T = typename decltype(tag)::type;
    // Many replicas: each on one thread, and none waits for another's blocks.
    const int64_t replicas = args.replicas();
    if (replicas >= 4 * exec.threads) {
      parallel_for(replicas, exec.threads,
                   [&](int64_t r) { run_replica(args, simd.of<T>(), r, 1); });
    } else {
      for (int64_t r = 0; r < replicas; ++r) run_replica(args, simd.of<T>(), r, exec.threads);
    }
  });
}

}  // namespace catapult
