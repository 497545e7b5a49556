// Zeroed scratch memory on a cache-line boundary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace catapult {

template <typename T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t count) : count_(count) {
    data_ = static_cast<T*>(::operator new(bytes(), std::align_val_t{kAlignment}));
    clear();
  }
  ~AlignedBuffer() { ::operator delete(data_, std::align_val_t{kAlignment}); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return count_; }
  void clear() { std::memset(static_cast<void*>(data_), 0, bytes()); }

 private:
  static constexpr size_t kAlignment = 64;
  size_t bytes() const { return (count_ > 0 ? static_cast<size_t>(count_) : 1) * sizeof(T); }

  int64_t count_;
  T* data_;
};

}  // namespace catapult
