// Remembers which of cuBLASLt's algorithms a product is done by: choosing takes it longer than starting the product.
// Plain C++.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

#include "core/status.h"
#include "kernels/cuda/cublaslt.h"

namespace espalier::cuda {

// What the choice goes by: sizes, the strides of w, x and y in elements, the bytes that their addresses are multiples
// of, and the type of y.
struct ProductKind {
  std::array<uint64_t, 3> sizes{};  // rows of w, its columns, tokens
  std::array<int64_t, 3> strides{};
  std::array<uint32_t, 3> alignments{};
  int y_type = 0;

  auto operator<=>(const ProductKind&) const = default;
};

class ChosenAlgorithms {
 public:
  // Keeps at most so many; then it forgets them all, and asks again as they come.
  explicit ChosenAlgorithms(size_t most) : most_(most) {}

  // What `choose`, a function without arguments that gives a Result<lt::Choice>, gave for this kind before, else what
  // it gives now. Its errors are not kept. May be called from several threads.
  template <class Choose>
  Result<lt::Choice> get(const ProductKind& kind, const Choose& choose) {
    const std::lock_guard lock(mutex_);
    if (const auto known = choices_.find(kind); known != choices_.end()) return known->second;
    Result<lt::Choice> choice = choose();
    if (!choice.is_ok()) return choice;
    if (choices_.size() >= most_) choices_.clear();
    choices_.emplace(kind, choice.value());
    return choice;
  }

  size_t size() const {
    const std::lock_guard lock(mutex_);
    return choices_.size();
  }

 private:
  const size_t most_;
  mutable std::mutex mutex_;
  std::map<ProductKind, lt::Choice> choices_;
};

}  // namespace espalier::cuda
