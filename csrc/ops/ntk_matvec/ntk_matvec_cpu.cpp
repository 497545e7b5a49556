#include <algorithm>
#include <cmath>
#include <vector>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "core/scratch.hpp"
#include "ops/ntk_matvec/ntk_matvec.hpp"
#include "ops/ntk_matvec/ntk_matvec_simd.hpp"

namespace catapult {
namespace {

// One step of the chain: the product of item b (vector b % K of replica b / K), of rows x cols.
template <typename T>
struct Step {
  int64_t rows, cols;
  Product<T> product;
};

template <typename T>
class Chain {
 public:
  explicit Chain(const NtkMatvecArgs& args)
      : args_(args), kernels_((CATAPULT_SELECT_ISA(ntk_matvec_simd)).template of<T>()) {
    std::vector<int64_t> p, d, in_sample_space;
    for (size_t l = 0; l < args.weights.size(); ++l) {
      p.push_back(args.weights[l].size[1]);
      d.push_back(args.weights[l].size[2]);
      in_sample_space.push_back(args.in_sample_space(l));
    }
    samples_ = args.inputs[0].size[1];
    outputs_ = p.back();
    vectors_ = args.v.size[2];
    layout_ = ntk_matvec_layout(samples_, p, d, in_sample_space);
  }

  int64_t items() const { return args_.v.size[0] * vectors_; }

  // All products of items [first, last); the pieces of each step are shared out over the threads.
  void run(int64_t first, int64_t last, int threads) const {
    const int layers = static_cast<int>(args_.weights.size());
    if (vectors_ > 1)
      for (int64_t b = first; b < last; ++b) copy_in(b);
    for (int l = layers - 1; l > 0; --l)
      run_step(first, last, threads, [&](int64_t b) { return backward(b, l); });
    for (int l = 0; l < layers; ++l) {
      if (!args_.in_sample_space(l)) {
        run_step(first, last, threads, [&](int64_t b) { return weight_gradient(b, l); });
        if (args_.bias[l] != 0.0)
          parallel_for(last - first, threads, [&](int64_t i) { column_sums(first + i, l); });
      }
      run_step(first, last, threads, [&](int64_t b) { return forward(b, l); });
    }
    if (vectors_ > 1)
      for (int64_t b = first; b < last; ++b) copy_out(b);
  }

 private:
  template <typename MakeStep>
  void run_step(int64_t first, int64_t last, int threads, const MakeStep& make) const {
    const Step<T> shape = make(first);
    const int64_t batch = last - first;
    double operations = 0.0;
    for (int t = 0; t < shape.product.term_count; ++t)
      operations += 2.0 * batch * shape.rows * shape.cols * shape.product.terms[t].depth;
    threads = threads_for(operations, threads);
    const ProductConfig config = product_config(shape.rows, shape.cols, batch, kernels_.tile_rows,
                                                kernels_.tile_cols, sizeof(T), threads);
    const int64_t down = (shape.rows + config.rows - 1) / config.rows;
    const int64_t across = (shape.cols + config.cols - 1) / config.cols;
    const int64_t count = batch * down * across;
    const int team = usable_threads(threads, count);
    const int64_t elements =
        product_scratch(config, kernels_.tile_rows, kernels_.tile_cols, kernels_.slack);
    const Scratch scratch(team, elements * static_cast<int64_t>(sizeof(T)));
    parallel_for(count, team, [&](int64_t i) {
      const Step<T> step = make(first + i / (down * across));
      const int64_t block = i % (down * across);
      kernels_.block(step.product, config, block / across * config.rows,
                     block % across * config.cols, step.rows, step.cols,
                     scratch.piece<T>(piece_index(team)));
    });
  }

  int64_t p(int l) const { return args_.weights[l].size[1]; }
  int64_t d(int l) const { return args_.weights[l].size[2]; }
  T* work(int64_t b) const { return args_.workspace.as<T>() + b * layout_.size; }
  // The matrix of this item's replica in a tensor of replicas.
  const T* of(const TensorView& t, int64_t b) const {
    return t.as<T>() + b / vectors_ * t.size[1] * t.size[2];
  }
  // G_L and the result are v and out themselves where there is one vector.
  T* g(int64_t b, int l) const {
    const bool direct = vectors_ == 1 && l + 1 == static_cast<int>(args_.weights.size());
    return direct ? args_.v.as<T>() + b * samples_ * outputs_ : work(b) + layout_.g[l];
  }
  T* x(int64_t b, int l) const {
    const bool direct = vectors_ == 1 && l + 1 == static_cast<int>(args_.weights.size());
    return direct ? args_.out.as<T>() + b * samples_ * outputs_ : work(b) + layout_.x[l % 2];
  }

  Step<T> backward(int64_t b, int l) const {
    const T root = static_cast<T>(std::sqrt(args_.scale[l]));
    Product<T> product{};
    product.term_count = 1;
    product.terms[0] = {{g(b, l), p(l), true, root}, {of(args_.weights[l], b), d(l), false}, p(l)};
    product.out = g(b, l - 1);
    product.ld = d(l);
    product.mask = of(args_.slopes[l - 1], b);
    return {samples_, d(l), product};
  }

  Step<T> weight_gradient(int64_t b, int l) const {
    Product<T> product{};
    product.term_count = 1;
    product.terms[0] = {{g(b, l), p(l), false}, {of(args_.inputs[l], b), d(l), false}, samples_};
    product.out = work(b) + layout_.dw;
    product.ld = d(l);
    return {p(l), d(l), product};
  }

  void column_sums(int64_t b, int l) const {
    kernels_.column_sums(g(b, l), samples_, p(l), static_cast<T>(args_.bias[l]),
                         work(b) + layout_.sum);
  }

  // X_l, already multiplied by the slopes that the next layer wants.
  Step<T> forward(int64_t b, int l) const {
    const T scale = static_cast<T>(args_.scale[l]), bias = static_cast<T>(args_.bias[l]);
    Product<T> product{};
    ProductTerm<T>& source = product.terms[0];
    if (args_.in_sample_space(l)) {
      source = {
          {of(args_.grams[l], b), samples_, true, scale, bias}, {g(b, l), p(l), false}, samples_};
    } else {
      source = {
          {of(args_.inputs[l], b), d(l), true, scale}, {work(b) + layout_.dw, d(l), true}, d(l)};
      if (bias != T(0)) product.row_bias = work(b) + layout_.sum;
    }
    product.term_count = 1;
    if (l > 0) {
      const T root = static_cast<T>(std::sqrt(args_.scale[l]));
      product.terms[1] = {
          {x(b, l - 1), d(l), true, root}, {of(args_.weights[l], b), d(l), true}, d(l)};
      product.term_count = 2;
    }
    product.out = x(b, l);
    product.ld = p(l);
    if (l + 1 < static_cast<int>(args_.weights.size())) product.mask = of(args_.slopes[l], b);
    return {samples_, p(l), product};
  }

  void copy_in(int64_t b) const {
    const int64_t n = samples_ * outputs_, k = b % vectors_;
    const T* from = args_.v.as<T>() + b / vectors_ * n * vectors_ + k;
    T* to = g(b, static_cast<int>(args_.weights.size()) - 1);
    for (int64_t i = 0; i < n; ++i) to[i] = from[i * vectors_];
  }

  void copy_out(int64_t b) const {
    const int64_t n = samples_ * outputs_, k = b % vectors_;
    const T* from = x(b, static_cast<int>(args_.weights.size()) - 1);
    T* to = args_.out.as<T>() + b / vectors_ * n * vectors_ + k;
    for (int64_t i = 0; i < n; ++i) to[i * vectors_] = from[i];
  }

  const NtkMatvecArgs& args_;
  const ProductKernels<T>& kernels_;
  NtkMatvecLayout layout_;
  int64_t samples_, outputs_, vectors_;
};

}  // namespace

void ntk_matvec_cpu(const NtkMatvecArgs& args, const Exec& exec) {
  dispatch_float(args.v.dtype, "ntk_matvec", [&](auto tag) {
    const Chain<typename decltype(tag)::type> chain(args);
    const int64_t items = chain.items();
    // Many items: each runs its whole chain on one thread, and no step waits for another's.
    if (items >= 4 * exec.threads) {
      parallel_for(items, exec.threads, [&](int64_t b) { chain.run(b, b + 1, 1); });
    } else {
      chain.run(0, items, exec.threads);
    }
  });
}

}  // namespace catapult
