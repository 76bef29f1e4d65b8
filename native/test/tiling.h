// Random matrices in a layout of the GPU's products.
#pragma once

#include "kernels/cuda/tiled_weights.h"
#include "packing.h"

namespace espalier::test {

struct Tiling {
  cuda::TileLayout layout;
  int n;
  Format zeros;  // what zeros it wants
  double density;
};

// One of each layout that products take; bitmaps store the more the larger their `density`.
inline std::vector<Tiling> all_tilings(double density) {
  return {
      {cuda::TileLayout::kDense, 0, {Storage::kDense, Values::kBf16}, 1.0},
      {cuda::TileLayout::kTwoFour, 0, {Storage::kNm, Values::kBf16, 2, 4}, 0.5},
      {cuda::TileLayout::kBalanced, 16, {Storage::kNm, Values::kBf16, 16, 32}, 0.5},
      {cuda::TileLayout::kBitmap, 0, {Storage::kBitmap, Values::kBf16}, density},
      {cuda::TileLayout::kDenseInt8, 0, {Storage::kDense, Values::kBf16}, 1.0},
      {cuda::TileLayout::kTwoFourInt8, 0, {Storage::kNm, Values::kBf16, 2, 4}, 0.5},
  };
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }

// Matrices of one shape; `matrices` becomes the weights that they stand for.
inline Result<cuda::TiledWeights> tile_random(std::mt19937& random, ThreadPool& pool, const Tiling& tiling, int count,
                                              int64_t rows, int64_t cols, std::vector<std::vector<float>>& matrices) {
  matrices.clear();
  for (int i = 0; i < count; ++i) {
    matrices.push_back(sparse_weights(random, rows, cols, tiling.zeros, tiling.density));
  }
  if (!cuda::holds_codes(tiling.layout)) {
    std::vector<MatrixSource> sources;
    for (const auto& values : matrices) sources.emplace_back(DType::kF32, rows, cols, values.data());
    return cuda::tile_weights(pool, tiling.layout, sources, tiling.n);
  }
  std::vector<std::vector<int8_t>> codes;
  std::vector<std::vector<uint16_t>> scales;
  std::vector<cuda::CodeMatrix> sources;
  for (auto& values : matrices) {
    const PackedMatrix packed = pack(values, rows, cols, {Storage::kDense, Values::kInt8});
    codes.emplace_back(values.size());
    scales.emplace_back(static_cast<size_t>(rows * packed.groups()));
    packed.unpack_codes(pool, codes.back().data(), scales.back().data());
    packed.unpack(pool, values.data());
    sources.emplace_back(rows, cols, codes.back().data(), scales.back().data());
  }
  return cuda::tile_codes(pool, tiling.layout, sources);
}

}  // namespace espalier::test
