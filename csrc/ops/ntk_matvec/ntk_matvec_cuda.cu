// PTX: mma.sync.aligned.m8n8k4, cp.async.cg, ld.shared.v4

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/cuda/launch.cuh"
#include "core/dispatch.hpp"
#include "ops/ntk_matvec/ntk_matvec.hpp"
#include "ops/ntk_matvec/ntk_matvec_kernel.cuh"

namespace catapult {
namespace {

using device::ItemMatrix;
using device::MatvecParams;
using device::MatvecStep;
using device::TileShape;

constexpr const char* kOp = "ntk_matvec";

template <typename T>
struct Engines {
  using Large = device::FmaEngine<TileShape<T, 64, 64, 4, 1>, true>;
  using Small = device::FmaEngine<TileShape<T, 32, 32, 2, 1>, true>;
};
template <>
struct Engines<double> {
  using Large = device::F64Engine<TileShape<double, 64, 64, 4, 1>, true>;
  using Small = device::F64Engine<TileShape<double, 32, 32, 2, 1>, true>;
};

int as_int(int64_t value) {
  check(value <= INT32_MAX / 2, kOp, "sizes must be below 2^30 on a GPU, got ", value);
  return static_cast<int>(value);
}

// Builds the steps of one chain; every matrix of theirs is found by replica and vector.
template <typename T>
class Steps {
 public:
  explicit Steps(const NtkMatvecArgs& args) : args_(args) {
    std::vector<int64_t> p, d, in_sample_space;
    for (size_t l = 0; l < args.weights.size(); ++l) {
      p.push_back(args.weights[l].size[1]);
      d.push_back(args.weights[l].size[2]);
      in_sample_space.push_back(args.in_sample_space(l));
    }
    samples_ = args.inputs[0].size[1];
    vectors_ = args.v.size[2];
    layout_ = ntk_matvec_layout(samples_, p, d, in_sample_space);
  }

  std::vector<MatvecStep<T>> all() const {
    std::vector<MatvecStep<T>> steps;
    const size_t layers = args_.weights.size();
    for (size_t l = layers - 1; l > 0; --l) steps.push_back(backward(l));
    for (size_t l = 0; l < layers; ++l) {
      if (!args_.in_sample_space(l)) {
        steps.push_back(weight_gradient(l));
        if (args_.bias[l] != 0.0) steps.push_back(column_sums(l));
      }
      steps.push_back(forward(l));
    }
    return steps;
  }

 private:
  using In = ItemMatrix<const T>;

  int64_t p(size_t l) const { return args_.weights[l].size[1]; }
  int64_t d(size_t l) const { return args_.weights[l].size[2]; }
  bool is_last(size_t l) const { return l + 1 == args_.weights.size(); }

  // A tensor (R, rows, cols), the same for every vector.
  static In frozen(const TensorView& t) {
    return {t.as<const T>(), t.size[1] * t.size[2], 0, as_int(t.size[2]), 1};
  }
  static In transposed(In m) {
    std::swap(m.row_stride, m.col_stride);
    return m;
  }
  ItemMatrix<T> in_workspace(int64_t offset, int64_t cols) const {
    return {args_.workspace.as<T>() + offset, vectors_ * layout_.size, layout_.size, as_int(cols),
            1};
  }
  // v and out themselves, (R, N*O, K): G_L and the result are never copied.
  ItemMatrix<T> in_tensor(const TensorView& t) const {
    const int64_t outputs = args_.weights.back().size[1];
    return {t.as<T>(), t.size[1] * t.size[2], 1, as_int(outputs * vectors_), as_int(vectors_)};
  }
  ItemMatrix<T> g(size_t l) const {
    return is_last(l) ? in_tensor(args_.v) : in_workspace(layout_.g[l], p(l));
  }
  ItemMatrix<T> x(size_t l) const {
    return is_last(l) ? in_tensor(args_.out) : in_workspace(layout_.x[l % 2], p(l));
  }
  static In read(const ItemMatrix<T>& m) {
    return {m.data, m.replica_stride, m.vector_stride, m.row_stride, m.col_stride};
  }

  MatvecStep<T> product(const ItemMatrix<T>& out, int64_t rows, int64_t cols) const {
    MatvecStep<T> step{};
    step.rows = as_int(rows);
    step.cols = as_int(cols);
    step.out = out;
    return step;
  }
  static void add(MatvecStep<T>& step, const In& left, const In& right, int64_t depth,
                  double factor, double offset = 0.0) {
    step.terms[step.term_count++] = {left, right, static_cast<T>(factor), static_cast<T>(offset),
                                     as_int(depth)};
  }

  MatvecStep<T> backward(size_t l) const {
    MatvecStep<T> step = product(g(l - 1), samples_, d(l));
    add(step, read(g(l)), frozen(args_.weights[l]), p(l), std::sqrt(args_.scale[l]));
    step.mask = frozen(args_.slopes[l - 1]);
    return step;
  }
  MatvecStep<T> weight_gradient(size_t l) const {
    MatvecStep<T> step = product(in_workspace(layout_.dw, d(l)), p(l), d(l));
    add(step, transposed(read(g(l))), frozen(args_.inputs[l]), samples_, 1.0);
    return step;
  }
  MatvecStep<T> column_sums(size_t l) const {
    MatvecStep<T> step = product(in_workspace(layout_.sum, p(l)), 1, p(l));
    step.sums_of = read(g(l));
    step.sum_factor = static_cast<T>(args_.bias[l]);
    step.sum_rows = as_int(samples_);
    return step;
  }
  // X_l, already multiplied by the slopes that the next layer wants.
  MatvecStep<T> forward(size_t l) const {
    MatvecStep<T> step = product(x(l), samples_, p(l));
    if (args_.in_sample_space(l)) {
      add(step, frozen(args_.grams[l]), read(g(l)), samples_, args_.scale[l], args_.bias[l]);
    } else {
      add(step, frozen(args_.inputs[l]), transposed(read(in_workspace(layout_.dw, d(l)))), d(l),
          args_.scale[l]);
      if (args_.bias[l] != 0.0) step.row_bias = read(in_workspace(layout_.sum, p(l)));
    }
    if (l > 0)
      add(step, read(x(l - 1)), transposed(frozen(args_.weights[l])), d(l),
          std::sqrt(args_.scale[l]));
    if (!is_last(l)) step.mask = frozen(args_.slopes[l]);
    return step;
  }

  const NtkMatvecArgs& args_;
  NtkMatvecLayout layout_;
  int64_t samples_, vectors_;
};

template <typename Engine, typename T>
void launch_steps(const MatvecParams<T>& params, int64_t items, const Exec& exec) {
  constexpr int kBlocksPerProcessor = 2;
  const int64_t blocks = items * params.blocks_per_item;
  check(blocks <= INT32_MAX, kOp, "too many tiles for one launch: ", blocks);
  device::launch(&device::ntk_matvec_kernel<Engine, kBlocksPerProcessor>,
                 {kOp, exec, dim3(static_cast<unsigned>(blocks)), dim3(Engine::Shape::kThreads),
                  sizeof(T) * Engine::Shape::kSharedSize},
                 params);
}

template <typename Shape, typename T>
int64_t tile_count(const MatvecStep<T>& step) {
  const int64_t down = (step.rows + Shape::kRows - 1) / Shape::kRows;
  const int64_t across = (step.cols + Shape::kCols - 1) / Shape::kCols;
  return std::max<int64_t>(down * across, 1);
}

template <typename T>
void run(const NtkMatvecArgs& args, const Exec& exec) {
  using Large = typename Engines<T>::Large;
  using Small = typename Engines<T>::Small;
  const std::vector<MatvecStep<T>> steps = Steps<T>(args).all();
  const int64_t items = args.v.size[0] * args.v.size[2];
  const int64_t processors = device::device_facts(exec, kOp).multiprocessors;
  const bool whole_chain = items >= processors;
  const size_t per_launch = whole_chain ? device::kMatvecSteps : 1;
  for (size_t first = 0; first < steps.size(); first += per_launch) {
    MatvecParams<T> params{};
    params.vectors = as_int(args.v.size[2]);
    params.blocks_per_item = 1;
    for (size_t s = first; s < steps.size() && s < first + per_launch; ++s)
      params.steps[params.step_count++] = steps[s];
    if (whole_chain) {
      launch_steps<Large>(params, items, exec);
      continue;
    }
    const int64_t large = tile_count<typename Large::Shape>(steps[first]);
    const int64_t small = tile_count<typename Small::Shape>(steps[first]);
    const bool fills = large * items >= processors;
    params.blocks_per_item = as_int(fills ? large : small);
    if (fills) {
      launch_steps<Large>(params, items, exec);
    } else {
      launch_steps<Small>(params, items, exec);
    }
  }
}

}  // namespace

void ntk_matvec_cuda(const NtkMatvecArgs& args, const Exec& exec) {
  dispatch_float(args.v.dtype, kOp,
                 [&](auto tag) { run<typename decltype(tag)::type>(args, exec); });
}

}  // namespace catapult
