// Curvature records on the CPU: the state of a replica is set aside until every lane is taken.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "toy/toy_curvature_simd.hpp"

namespace catapult {

// Rows that stand for the samples: R of X = Q R, on and above the diagonal, where there are more
// samples than inputs, else X itself. y turns along with them; what of it lies outside the range of
// X follows as a row of zeros.
struct ToyDataRows {
  template <typename T>
  ToyDataRows(const T* data, const T* targets, int64_t samples, int64_t inputs_in)
      : rows(samples),
        inputs(inputs_in),
        x(data, data + samples * inputs),
        y(targets, targets + samples) {
    if (samples > inputs) triangularise();
    first.assign(rows, inputs);
    last.assign(rows, inputs);
    for (int64_t a = 0; a < rows; ++a) {
      const double* row = x.data() + a * inputs;
      first[a] = std::find_if(row, row + inputs, [](double e) { return e != 0.0; }) - row;
      while (last[a] > first[a] && row[last[a] - 1] == 0.0) --last[a];
    }
  }

  int64_t rows, inputs;
  std::vector<double> x, y;
  std::vector<int64_t> first, last;  // where each row is non-zero

 private:
  // Householder's reflections of the columns of (X, y).
  void triangularise() {
    const int64_t d = inputs;
    for (int64_t k = 0; k < d; ++k) {
      double norm2 = 0.0;
      for (int64_t a = k; a < rows; ++a) norm2 += x[a * d + k] * x[a * d + k];
      if (norm2 == 0.0) continue;
      const double alpha = x[k * d + k] > 0.0 ? -std::sqrt(norm2) : std::sqrt(norm2);
      x[k * d + k] -= alpha;  // column k now holds u, |u|^2 = -2 alpha u_k
      const double beta = -1.0 / (alpha * x[k * d + k]);
      for (int64_t j = k + 1; j <= d; ++j) {
        auto entry = [&](int64_t a) -> double& { return j < d ? x[a * d + j] : y[a]; };
        double sum = 0.0;
        for (int64_t a = k; a < rows; ++a) sum += x[a * d + k] * entry(a);
        for (int64_t a = k; a < rows; ++a) entry(a) -= beta * sum * x[a * d + k];
      }
      x[k * d + k] = alpha;
      for (int64_t a = k + 1; a < rows; ++a) x[a * d + k] = 0.0;
    }
    double rest = 0.0;
    for (int64_t a = d; a < rows; ++a) rest += y[a] * y[a];
    y[d] = std::sqrt(rest);
    rows = d + 1;
    x.resize(rows * d);
    y.resize(rows);
  }
};

// Collects states and puts their curvatures, divided by the width, where they belong.
template <typename T>
class ToyCurvatureBatch {
 public:
  ToyCurvatureBatch(const ToyDataRows& data, int64_t samples, double width)
      : table_(CATAPULT_SELECT_ISA(toy_curvature_simd)),
        inputs_(data.inputs),
        width_(width),
        factor_(data.x.begin(), data.x.begin() + used_rows(data) * data.inputs),
        first_(data.first.begin(), data.first.begin() + used_rows(data)),
        gram_(inputs_ * inputs_ * table_.lanes),
        q_(table_.lanes),
        out_(table_.lanes),
        work_(toy_curvature_lanes_work(used_rows(data), inputs_) * table_.lanes),
        targets_(table_.lanes) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(samples));
    for (double& entry : factor_) entry *= scale;
  }

  // entry(i, j) is S[i][j] for i <= j; the curvature goes to *target at the latest with flush().
  template <typename Entry>
  void add(const Entry& entry, double q, T* target) {
    const int64_t lanes = table_.lanes;
    for (int64_t i = 0; i < inputs_; ++i)
      for (int64_t j = i; j < inputs_; ++j) {
        const double value = static_cast<double>(entry(i, j));
        gram_.data()[(i * inputs_ + j) * lanes + filled_] = value;
        gram_.data()[(j * inputs_ + i) * lanes + filled_] = value;
      }
    q_.data()[filled_] = q;
    targets_[filled_] = target;
    if (++filled_ == lanes) flush();
  }

  void flush() {
    if (filled_ == 0) return;
    const int64_t rows = static_cast<int64_t>(first_.size());
    table_.tops({rows, inputs_, factor_.data(), first_.data()}, gram_.data(), q_.data(),
                work_.data(), out_.data());
    for (int64_t l = 0; l < filled_; ++l) *targets_[l] = static_cast<T>(out_.data()[l] / width_);
    filled_ = 0;
  }

 private:
  // The row of zeros carries no curvature.
  static int64_t used_rows(const ToyDataRows& data) {
    return data.rows > data.inputs ? data.inputs : data.rows;
  }

  const ToyCurvatureTable& table_;
  int64_t inputs_;
  double width_;
  std::vector<double> factor_;
  std::vector<int64_t> first_;
  AlignedBuffer<double> gram_, q_, out_, work_;
  std::vector<T*> targets_;
  int64_t filled_ = 0;
};

}  // namespace catapult
