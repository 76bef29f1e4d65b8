// Panels over matrices whose sizes are no multiple of kPanel, and over the tiles of a triangle.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "prune/panel_kernels.h"

namespace espalier {

inline int64_t panel_count(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// Columns of panel `index` that exist.
inline int64_t panel_width(int64_t columns, int64_t index) { return std::min(kPanel, columns - index * kPanel); }

// The tile at position `index` of a lower triangle enumerated row by row: (0,0), (1,0), (1,1), (2,0), ...
struct TriangleTile {
  int64_t row;
  int64_t column;
};

inline int64_t triangle_index(int64_t row, int64_t column) { return row * (row + 1) / 2 + column; }

inline TriangleTile triangle_tile(int64_t index) {
  auto row = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(index) + 1.0) - 1.0) / 2.0);
  while (triangle_index(row + 1, 0) <= index) ++row;
  while (triangle_index(row, 0) > index) --row;
  return {row, index - triangle_index(row, 0)};
}

// PanelKernels::update on a tile of which only rows × columns exist in memory.
template <class T>
void update_tile(const PanelKernels<T>& kernels, int64_t depth, const T* a, const T* b, T alpha, T* c, int64_t stride,
                 int64_t rows, int64_t columns) {
  if (rows == kPanel && columns == kPanel) {
    kernels.update(depth, a, b, alpha, c, stride);
    return;
  }
  alignas(64) T sum[kPanel * kPanel] = {};
  kernels.update(depth, a, b, alpha, sum, kPanel);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) c[i * stride + j] += sum[i * kPanel + j];
  }
}

// panel[k, i] = source[i, k]: packs `columns` rows of a row-major matrix, `depth` elements of each, and pads with
// zeros.
template <class T>
void pack_transposed(const T* source, int64_t stride, int64_t columns, int64_t depth, T* panel) {
  if (columns < kPanel) std::fill(panel, panel + depth * kPanel, T{0});
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t k = 0; k < depth; ++k) panel[k * kPanel + i] = source[i * stride + k];
  }
}

// The inverse of pack_transposed, without the padding.
template <class T>
void unpack_transposed(const T* panel, int64_t columns, int64_t depth, T* target, int64_t stride) {
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t k = 0; k < depth; ++k) target[i * stride + k] = panel[k * kPanel + i];
  }
}

}  // namespace espalier
