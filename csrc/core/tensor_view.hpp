// A typed, strided piece of memory: all that the kernels know of a tensor.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "core/error.hpp"

namespace catapult {

enum class Dtype : int8_t { kFloat32, kFloat64, kInt64 };

inline const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kFloat64:
      return "float64";
    default:
      return "int64";
  }
}

template <typename T>
struct DtypeOf;
template <>
struct DtypeOf<float> {
  static constexpr Dtype value = Dtype::kFloat32;
};
template <>
struct DtypeOf<double> {
  static constexpr Dtype value = Dtype::kFloat64;
};
template <>
struct DtypeOf<int64_t> {
  static constexpr Dtype value = Dtype::kInt64;
};

struct TensorView {
  static constexpr int kMaxDims = 5;

  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int ndim = 0;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};  // in elements

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= size[i];
    return n;
  }

  bool contiguous() const {
    if (numel() == 0) return true;  // NumPy gives empty arrays strides of 0
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (size[i] != 1 && stride[i] != expected) return false;
      expected *= size[i];
    }
    return true;
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// A contiguous view of memory of the caller's own.
inline TensorView dense_view(void* data, Dtype dtype, std::initializer_list<int64_t> sizes) {
  TensorView v;
  v.data = data;
  v.dtype = dtype;
  v.ndim = static_cast<int>(sizes.size());
  int64_t stride = 1;
  for (int i = v.ndim - 1; i >= 0; --i) {
    v.size[i] = sizes.begin()[i];
    v.stride[i] = stride;
    stride *= v.size[i];
  }
  return v;
}

// Memory facts every op needs of an argument: rank, dtype, contiguity, and no null data.
inline void check_dense(const char* op, const char* name, const TensorView& t, int ndim,
                        Dtype dtype) {
  check(t.ndim == ndim, op, name, " must have ", ndim, " dimensions, got ", t.ndim);
  check(t.dtype == dtype, op, name, " must be ", dtype_name(dtype), ", got ", dtype_name(t.dtype));
  check(t.contiguous(), op, name, " must be contiguous");
  check(t.data != nullptr || t.numel() == 0, op, name, " has a null data pointer");
}

inline void check_size(const char* op, const char* name, const TensorView& t, int dim,
                       int64_t want) {
  check(t.size[dim] == want, op, name, ".size(", dim, ") must be ", want, ", got ", t.size[dim]);
}

}  // namespace catapult
