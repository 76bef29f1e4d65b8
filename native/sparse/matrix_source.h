// Where the elements of a matrix come from when it is packed: an array in memory, or a function that makes rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "sparse/format.h"

namespace espalier {

// Some rows of a matrix, one after the other, as BF16, F16 or F32 elements at any alignment.
struct RowBlock {
  DType dtype = DType::kF32;
  int64_t count = 0;
  int64_t cols = 0;
  const uint8_t* data = nullptr;

  int64_t row_bytes() const { return cols * (dtype == DType::kF32 ? 4 : 2); }
  const uint8_t* row(int64_t index) const { return data + index * row_bytes(); }
};

class MatrixSource {
 public:
  // Copies row `row` (cols values) to `out`. Called from several threads.
  using RowReader = std::function<void(int64_t row, float* out)>;

  // Row-major [rows, cols] elements of type BF16, F16 or F32, which must outlive this.
  MatrixSource(DType dtype, int64_t rows, int64_t cols, const void* data)
      : dtype_(dtype), rows_(rows), cols_(cols), data_(static_cast<const uint8_t*>(data)) {}
  // Rows of floats that `read` makes whenever they are wanted: `read` must outlive this.
  MatrixSource(int64_t rows, int64_t cols, const RowReader& read) : rows_(rows), cols_(cols), read_(&read) {}

  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  // The rows of a tile row; `scratch` may hold them.
  RowBlock tile(int64_t tile_row, std::vector<float>& scratch) const {
    const int64_t first = tile_row * kTileRows;
    RowBlock block{dtype_, std::min<int64_t>(kTileRows, rows_ - first), cols_, nullptr};
    if (read_ == nullptr) {
      block.data = data_ + first * block.row_bytes();
      return block;
    }
    scratch.resize(static_cast<size_t>(kTileRows * cols_));
    for (int64_t r = 0; r < block.count; ++r) (*read_)(first + r, scratch.data() + r * cols_);
    block.data = reinterpret_cast<const uint8_t*>(scratch.data());
    return block;
  }

 private:
  DType dtype_ = DType::kF32;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  const uint8_t* data_ = nullptr;
  const RowReader* read_ = nullptr;
};

}  // namespace espalier
