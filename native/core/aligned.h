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
    // Fresh pages are zero.
    if (data_ && allocated(size) < kHugePage) std::memset(static_cast<void*>(data_.get()), 0, allocated(size));
  }
  void reset_uninitialised(size_t size) {
    data_.reset();
    const size_t bytes = allocated(size);
    if (bytes < kHugePage) {
      data_ = {static_cast<T*>(std::aligned_alloc(kAlignment, bytes)), Free{}};
    } else {
      data_ = {static_cast<T*>(map(bytes)), Free{bytes}};
    }
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
    size_t mapped = 0;
    void operator()(T* p) const {
      if (mapped > 0) {
        munmap(static_cast<void*>(p), mapped);
      } else {
        std::free(p);
      }
    }
  };
  // Mapped for itself, what is large goes back to the system when it is freed; malloc keeps it, in pieces. On huge
  // pages, because weights are read once a token from end to end: with small ones the address translation costs a third
  // of the time.
  static void* map(size_t bytes) {
    void* const found = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return nullptr;
    auto* const begin = static_cast<std::byte*>(found);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (before > 0) munmap(begin, before);
    if (before < kHugePage) munmap(begin + before + bytes, kHugePage - before);
    madvise(begin + before, bytes, MADV_HUGEPAGE);
    return begin + before;
  }
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
