// Arithmetic shared by the forms of the toy model and by CPU and CUDA: the divergence cut, the
// record of a replica, and the curvature.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/host_device.hpp"
#include "toy/toy_activation.hpp"
#include "toy/toy_records.hpp"

namespace catapult {

// |f(x)| <= max |phi'| |x| (|U|^2 + |v|^2) / (2 sqrt(W)) + |phi(0)| |v| always, and a bounded run
// keeps the weight norm near its start: a loss this many times above the bound that follows never
// comes back.
constexpr double kDivergenceFactor = 1e3;

// Sums over the samples that the cut needs: |x|^2 and y^2.
struct ToyDataNorms {
  double xx = 0.0, yy = 0.0;
};

template <typename T>
CATAPULT_HOST_DEVICE ToyDataNorms toy_data_norms(const T* x, const T* y, int64_t samples,
                                                 int64_t inputs) {
  ToyDataNorms norms;
  for (int64_t i = 0; i < samples * inputs; ++i)
    norms.xx += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (int64_t a = 0; a < samples; ++a)
    norms.yy += static_cast<double>(y[a]) * static_cast<double>(y[a]);
  return norms;
}

template <typename T>
struct FloatMax;
template <>
struct FloatMax<float> {
  static constexpr double value = FLT_MAX;
};
template <>
struct FloatMax<double> {
  static constexpr double value = DBL_MAX;
};

// The largest loss a replica may show; finite, so that `loss <= cut` rejects inf and NaN alike.
// `weight_norm` is |U|^2 + |v|^2, `v2` its second part, asked for where phi(0) is not zero.
template <typename T>
CATAPULT_HOST_DEVICE T toy_divergence_cut(const ToyDataNorms& norms, int64_t samples, double width,
                                          double weight_norm, const ToyActivation& phi = {},
                                          double v2 = 0.0) {
  const double reach = phi.steepest() * weight_norm / (2.0 * sqrt(width)) * sqrt(norms.xx) +
                       phi.at_zero() * sqrt(static_cast<double>(samples) * v2) + sqrt(norms.yy);
  const double cut = kDivergenceFactor * reach * reach / (2.0 * static_cast<double>(samples));
  return static_cast<T>(cut < FloatMax<T>::value ? cut : FloatMax<T>::value);
}

// Where the next records of one replica go, and what was last put there.
template <typename T>
struct ToyReplicaRecord {
  T* loss;
  T* weight_norm;
  T* curvature;
  int64_t* diverged_at;
  int64_t steps, record_every, curvature_every;
  int64_t next_record, next_curvature;  // steps; a countdown spares a division per step
  T cut;
  T last_loss, last_norm;

  // Rounding may leave a sum of squares that should be zero below it; NaN stays NaN.
  CATAPULT_HOST_DEVICE static T norm_of(T squares) {
    return squares < T(0) ? T(0) : static_cast<T>(sqrt(squares));
  }

  CATAPULT_HOST_DEVICE bool acceptable(T new_loss, T new_norm) const {
    return new_loss <= cut && new_norm <= static_cast<T>(FloatMax<T>::value);
  }

  // Takes the observables of step t (the norm squared); false where the replica has diverged and
  // must stop. Then every later record is filled with the last accepted values (NaN if there is
  // none).
  CATAPULT_HOST_DEVICE bool accept(int64_t t, T new_loss, T new_norm) {
    if (t == 0) *diverged_at = -1;
    if (!acceptable(new_loss, new_norm)) {
      *diverged_at = t;
      if (t == 0) last_loss = last_norm = static_cast<T>(NAN);
      hold();
      return false;
    }
    last_loss = new_loss;
    last_norm = new_norm;
    if (t == next_record) put(new_loss, norm_of(new_norm));
    return true;
  }

  CATAPULT_HOST_DEVICE void put(T new_loss, T root_of_norm) {
    *loss++ = new_loss;
    *weight_norm++ = root_of_norm;
    next_record += record_every;
  }

  CATAPULT_HOST_DEVICE bool wants_curvature(int64_t t) const {
    return curvature_every > 0 && t == next_curvature;
  }

  // Where the curvature of this step goes; to be filled before hold().
  CATAPULT_HOST_DEVICE T* take_curvature() {
    next_curvature += curvature_every;
    return curvature++;
  }

  // Fills every later record with the last values.
  CATAPULT_HOST_DEVICE void hold() {
    while (next_record <= steps) put(last_loss, norm_of(last_norm));
    const T held = next_curvature > 0 ? curvature[-1] : static_cast<T>(NAN);
    for (; curvature_every > 0 && next_curvature <= steps; next_curvature += curvature_every)
      *curvature++ = held;
  }
};

template <typename T>
ToyReplicaRecord<T> toy_replica_record(const ToyRecords& r, int64_t replica) {
  ToyReplicaRecord<T> record{};
  record.loss = r.loss.as<T>() + replica * r.loss.size[1];
  record.weight_norm = r.weight_norm.as<T>() + replica * r.loss.size[1];
  record.curvature = r.curvature.as<T>() + replica * r.curvature.size[1];
  record.diverged_at = r.diverged_at.as<int64_t>() + replica;
  record.steps = r.steps;
  record.record_every = r.record_every;
  record.curvature_every = r.curvature_every;
  return record;
}

// The curvature is the top eigenvalue of X (S + q I) X' / (N W). With more samples than inputs the
// same non-zero spectrum belongs to L' C L, where L L' = S + q I and C = X' X / N.
CATAPULT_HOST_DEVICE inline int64_t toy_curvature_order(int64_t samples, int64_t inputs) {
  return samples < inputs ? samples : inputs;
}

// Entries of the data matrix that a curvature reads: X / sqrt(N) itself (N < D), or C.
CATAPULT_HOST_DEVICE inline int64_t toy_curvature_data_size(int64_t samples, int64_t inputs) {
  return toy_curvature_order(samples, inputs) * inputs;
}

// Doubles beside S: the two products, and the tridiagonal matrix with its work.
CATAPULT_HOST_DEVICE inline int64_t toy_curvature_work(int64_t samples, int64_t inputs) {
  const int64_t order = toy_curvature_order(samples, inputs);
  return order * inputs + order * order + 4 * order;
}

template <typename T>
CATAPULT_HOST_DEVICE double toy_inner(const T* x, const T* y, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return sum;
}

// Doubles that the curvature records on CUDA take.
struct ToyCurvatureSizes {
  CATAPULT_HOST_DEVICE ToyCurvatureSizes(int64_t samples, int64_t inputs, bool linear)
      : order(linear ? inputs : samples),
        data(linear ? toy_curvature_data_size(samples, inputs) : 0),
        each(order * order + (linear ? toy_curvature_work(samples, inputs) : 4 * samples)) {}

  int64_t order;  // of the matrix stored at a record
  int64_t data;   // shared by all records
  int64_t each;   // scratch of a warp

  // A record's matrix, and |v|^2.
  CATAPULT_HOST_DEVICE int64_t stored() const { return order * order + 1; }
};

}  // namespace catapult
