// Where the tiles of packed weights lie, and what packing and checking them in several threads share.
#pragma once

#include <atomic>
#include <string>

#include "kernels/cuda/tile_bytes.h"

namespace espalier::cuda {

inline constexpr int64_t kStartUnit = 16;

// Where a tile of a validated or freshly made set lies.
struct TileRange {
  int64_t begin;
  int64_t bytes;
};
inline TileRange tile_range(const TiledWeights& weights, int64_t tile) {
  if (weights.layout != TileLayout::kBitmap) {
    const int64_t bytes = fixed_tile_bytes(weights.layout, weights.n);
    return {tile * bytes, bytes};
  }
  const int64_t begin = weights.starts[static_cast<size_t>(tile)];
  return {begin * kStartUnit, (weights.starts[static_cast<size_t>(tile) + 1] - begin) * kStartUnit};
}

// Which matrix, and where in it.
inline std::string tile_place(const TiledWeights& weights, int64_t tile) {
  const int64_t of_matrix = tile % (weights.row_tiles() * weights.col_tiles());
  return "matrix " + std::to_string(tile / (weights.row_tiles() * weights.col_tiles())) + " at row " +
         std::to_string(of_matrix / weights.col_tiles() * kTileHeight) + ", column " +
         std::to_string(of_matrix % weights.col_tiles() * kTileWidth);
}

// Keeps the smallest index for which something was wrong.
class FirstWrong {
 public:
  void report(int64_t index) {
    int64_t first = first_.load(std::memory_order_relaxed);
    while (index < first && !first_.compare_exchange_weak(first, index)) {
    }
  }
  bool any() const { return first_ != INT64_MAX; }
  int64_t index() const { return first_; }

 private:
  std::atomic<int64_t> first_{INT64_MAX};
};

// kUsage if matrices differ in shape or are of none that products take.
template <class Matrix>
Status check_shapes(std::span<const Matrix> matrices) {
  if (matrices.empty()) return Status(Code::kUsage, "there is no matrix to pack");
  const Matrix& first = matrices.front();
  for (const Matrix& matrix : matrices) {
    if (matrix.rows() != first.rows() || matrix.cols() != first.cols()) {
      return Status(Code::kUsage, "the matrices differ in shape; pack those of one shape together");
    }
  }
  if (first.rows() < 1 || first.cols() < 1 || first.cols() % 32 != 0) {
    return Status(Code::kUsage, "the GPU's products need rows and a multiple of 32 columns, not " +
                                    std::to_string(first.rows()) + " × " + std::to_string(first.cols()));
  }
  return Status::ok();
}

// Memory for all tiles of weights whose layout is planned; kOutOfMemory.
inline Status allocate_tiles(TiledWeights& weights) {
  const int64_t bytes = weights.layout == TileLayout::kBitmap
                            ? weights.starts.back() * kStartUnit
                            : weights.tile_count() * fixed_tile_bytes(weights.layout, weights.n);
  weights.tiles.reset_uninitialised(static_cast<size_t>(bytes));
  if (weights.tiles.data() != nullptr) return Status::ok();
  return Status(Code::kOutOfMemory, "not enough memory to pack weights");
}

// What packing says where a tile did not fit.
inline Status does_not_fit(const TiledWeights& weights, int64_t tile, int n) {
  return Status(Code::kUsage,
                tile_place(weights, tile) + " has more non-zeros than " + layout_name(weights.layout, n) + " holds");
}

}  // namespace espalier::cuda
