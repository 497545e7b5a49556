// Uninitialised CPU scratch, one aligned piece per thread.
#pragma once

#include <cstdint>
#include <new>

namespace catapult {

class Scratch {
 public:
  static constexpr int64_t kAlign = 64;

  Scratch(int64_t pieces, int64_t bytes_each)
      : stride_((bytes_each + kAlign - 1) / kAlign * kAlign),
        data_(static_cast<char*>(
            ::operator new(static_cast<size_t>(stride_ * pieces), std::align_val_t(kAlign)))) {}
  ~Scratch() { ::operator delete(data_, std::align_val_t(kAlign)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* piece(int64_t index) const {
    return reinterpret_cast<T*>(data_ + index * stride_);
  }

 private:
  int64_t stride_;
  char* data_;
};

}  // namespace catapult
