// Memory aligned to cache lines, for data that kernels load a vector at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace espalier {

inline constexpr size_t kAlignment = 64;

// A block of `size` T's (trivial types), 64-byte aligned and zeroed. `kSlack` bytes past the end may be read by vector
// loads.
template <class T>
class AlignedBuffer {
 public:
  static constexpr size_t kSlack = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t size) { reset(size); }

  // data() is nullptr afterwards if there is no memory.
  void reset(size_t size) {
    reset_uninitialised(size);
    if (data_) std::memset(static_cast<void*>(data_.get()), 0, allocated(size));
  }
  void reset_uninitialised(size_t size) {
    data_.reset();
    data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, allocated(size))));
    size_ = data_ ? size : 0;
  }
  // Grows without keeping the contents.
  void ensure(size_t size) {
    if (size > size_) reset(size);
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  static size_t allocated(size_t size) {
    return (size * sizeof(T) + kSlack + kAlignment - 1) / kAlignment * kAlignment;
  }

  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

}  // namespace espalier
