#include "sparse/random_matrix.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace espalier {
namespace {

// Distinct rows.
constexpr int64_t kRows = 4 * kTileRows;

// Zeros what the format does not store, in one row.
void thin(const Format& format, double sparsity, int64_t cols, std::mt19937& random, float* row) {
  if (format.storage == Storage::kDense) return;
  std::uniform_real_distribution<double> uniform;
  if (format.storage == Storage::kBitmap) {
    for (int64_t k = 0; k < cols; ++k) {
      if (uniform(random) < sparsity) row[k] = 0;
    }
    return;
  }
  for (int64_t first = 0; first < cols; first += format.m) {
    // Each input is kept with the chance that makes every choice of n equally likely.
    int left = format.n;
    for (int i = 0; i < format.m && first + i < cols; ++i) {
      if (uniform(random) * (format.m - i) < left) {
        --left;
      } else {
        row[first + i] = 0;
      }
    }
  }
}

}  // namespace

Result<PackedMatrix> random_matrix(ThreadPool& pool, Format format, int64_t rows, int64_t cols, double sparsity,
                                   uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(std::max<int64_t>(cols, 1))));
  const int64_t distinct = std::clamp<int64_t>(rows, 0, kRows);
  std::vector<float> table(static_cast<size_t>(distinct * std::max<int64_t>(cols, 0)));
  for (float& value : table) {
    // A number in a few millions is 0, which the format would not have asked for.
    do value = normal(random);
    while (value == 0);
  }
  if (format_exists(format, cols)) {
    for (int64_t row = 0; row < distinct; ++row) thin(format, sparsity, cols, random, table.data() + row * cols);
  }
  return PackedMatrix::pack(pool, format, rows, cols, [&](int64_t row, float* out) {
    std::copy_n(table.begin() + row % kRows * cols, cols, out);
  });
}

}  // namespace espalier
