// What a look at the zeros of a matrix says: which format suits it, and how much each tile row of a bitmap will store.
#pragma once

#include <cstdint>
#include <iterator>
#include <vector>

#include "core/thread_pool.h"
#include "sparse/format.h"
#include "sparse/matrix_source.h"

namespace espalier {

// Share of zeros from which a bitmap pays.
inline constexpr double kBitmapSparsity = 0.4;

class ZeroSurvey {
 public:
  // Reads the matrix once. Zero is what is stored as +0: −0 is a value of its own.
  ZeroSurvey(ThreadPool& pool, Values values, const MatrixSource& source);

  // The format that runs a matrix of these values fastest: n:m where every group of m inputs holds at most m / 2
  // non-zeros (2:4 before 4:8, 8:16, 16:32 and 32:64), bitmap where at least `kBitmapSparsity` of the elements are
  // zero, else dense.
  Format choose() const;

  int64_t zeros() const { return zeros_; }
  // Bytes of the elements of each tile row of a bitmap.
  const std::vector<int64_t>& tile_bytes() const { return tile_bytes_; }

 private:
  static constexpr int kSizes[] = {4, 8, 16, 32, 64};

  Values values_;
  int64_t elements_ = 0;
  int64_t zeros_ = 0;
  bool fits_[std::size(kSizes)] = {};  // m / 2 of each m = kSizes[i]
  std::vector<int64_t> tile_bytes_;
};

}  // namespace espalier
