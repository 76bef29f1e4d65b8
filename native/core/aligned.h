// Memory aligned to cache lines, for data that kernels load a vector at a time.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace espalier {

inline constexpr size_t kAlignment = 64;
inline constexpr size_t kHugePage = 2 * 1024 * 1024;

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
    const size_t bytes = allocated(size);
    data_.reset(static_cast<T*>(std::aligned_alloc(bytes < kHugePage ? kAlignment : kHugePage, bytes)));
    size_ = data_ ? size : 0;
    // Weights are read once a token from end to end: with small pages the address translation costs a third of the
    // time.
    if (data_ && bytes >= kHugePage) madvise(static_cast<void*>(data_.get()), bytes, MADV_HUGEPAGE);
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
  // Whole cache lines; from a huge page on, whole huge pages.
  static size_t allocated(size_t size) {
    const size_t bytes = size * sizeof(T) + kSlack;
    const size_t unit = bytes < kHugePage ? kAlignment : kHugePage;
    return (bytes + unit - 1) / unit * unit;
  }

  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

}  // namespace espalier
