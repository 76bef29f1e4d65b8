// Matrices of int8 codes to tiles.
#include <algorithm>
#include <cstring>

#include "kernels/cuda/tile_range.h"

namespace espalier::cuda {
namespace {

// A tile of a matrix, zeros beyond its end.
void read_tile(const CodeMatrix& matrix, int64_t row_tile, int64_t col_tile, CodeTile& out) {
  std::memset(&out, 0, sizeof out);
  const int64_t col = col_tile * kTileWidth;
  const int64_t width = std::min<int64_t>(kTileWidth, matrix.cols() - col);
  const int64_t first_group = col / kGroup;
  const int64_t groups = std::min<int64_t>(kTileGroups, matrix.groups() - first_group);
  for (int64_t r = 0; r < std::min<int64_t>(kTileHeight, matrix.rows() - row_tile * kTileHeight); ++r) {
    const int64_t row = row_tile * kTileHeight + r;
    std::memcpy(out.at[r], matrix.row(row) + col, static_cast<size_t>(width));
    std::memcpy(out.scales[r], matrix.scales(row) + first_group, static_cast<size_t>(groups) * sizeof(uint16_t));
  }
}

}  // namespace

TileLayout choose_code_tiles(ThreadPool& pool, std::span<const CodeMatrix> matrices) {
  std::atomic<bool> fits{true};
  const int64_t rows = matrices.front().rows();
  pool.parallel_for(static_cast<int64_t>(matrices.size()) * rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && fits.load(std::memory_order_relaxed); ++i) {
      const CodeMatrix& matrix = matrices[static_cast<size_t>(i / rows)];
      const int8_t* row = matrix.row(i % rows);
      for (int64_t k = 0; k + 4 <= matrix.cols(); k += 4) {
        if ((row[k] != 0) + (row[k + 1] != 0) + (row[k + 2] != 0) + (row[k + 3] != 0) > 2) fits = false;
      }
    }
  });
  return fits ? TileLayout::kTwoFourInt8 : TileLayout::kDenseInt8;
}

Result<TiledWeights> tile_codes(ThreadPool& pool, TileLayout layout, std::span<const CodeMatrix> matrices) {
  ESPALIER_TRY(check_shapes(matrices));
  if (!holds_codes(layout)) return Status(Code::kUsage, layout_name(layout, 0) + " is not made of codes");
  TiledWeights weights;
  weights.layout = layout;
  weights.count = static_cast<int64_t>(matrices.size());
  weights.rows = matrices.front().rows();
  weights.cols = matrices.front().cols();
  ESPALIER_TRY(allocate_tiles(weights));
  FirstWrong wrong;
  pool.parallel_for(weights.tile_count(), 64, [&](int64_t begin, int64_t end) {
    CodeTile tile;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row_tile = i / weights.col_tiles();
      read_tile(matrices[static_cast<size_t>(row_tile / weights.row_tiles())], row_tile % weights.row_tiles(),
                i % weights.col_tiles(), tile);
      uint8_t* out = weights.tiles.data() + tile_range(weights, i).begin;
      if (layout == TileLayout::kDenseInt8) {
        encode_dense_codes(tile, out);
      } else if (!encode_two_four_codes(tile, out)) {
        wrong.report(i);
      }
    }
  });
  if (!wrong.any()) return weights;
  return does_not_fit(weights, wrong.index(), 0);
}

}  // namespace espalier::cuda
