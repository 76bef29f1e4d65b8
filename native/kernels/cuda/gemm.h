// Products of thousands of rows on the tensor cores, nearly as precise as float32: y = x Wᵀ, all rows by one matrix or
// each by that of its group, as the tokens of an expert are. Plain C++; the kernel is in gemm.cu.
//
// A row of x is the sum of two bf16 rows (parts.h), which is at most 2⁻¹⁷ of it off; a row of W is one bf16 row, or
// two. Of two the products of both second parts are left out. So with sums in float32, as the tensor cores round them,
//   |y − x Wᵀ| ≤ (3 · 2⁻¹⁷ + depth / 8 · 2⁻²³) · Σ |x_k · w_k|,
// and 2⁻¹⁷ in the place of 3 · 2⁻¹⁷ where W is bf16.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"

struct CUstream_st;

namespace espalier::cuda {

inline constexpr int kGemmRows = 128;  // of x, in a tile
inline constexpr int kGemmCols = 256;  // of y, in a tile
inline constexpr int kGemmParts = 2;   // of a row of x

// Rows of x, one after the other, that are multiplied by one matrix.
struct GemmGroup {
  const uint16_t* weights = nullptr;  // [cols][weight_parts][depth], 16-byte aligned
  int32_t first_row = 0;
  int32_t rows = 0;
  int32_t first_tile = 0;  // see place_tiles
};

// Sets first_tile of each group, the tiles of the groups before it. Returns the tiles of all.
int32_t place_tiles(std::vector<GemmGroup>& groups, int64_t cols);

struct GemmTask {
  const GemmGroup* groups = nullptr;  // in device memory
  int32_t group_count = 0;
  int32_t tiles = 0;              // of all groups
  const uint16_t* x = nullptr;    // [?][kGemmParts][depth], 16-byte aligned
  const int32_t* rows = nullptr;  // the row of x that each row of the groups is; without: the same
  int32_t depth = 0;              // a multiple of 32
  int32_t cols = 0;
  int32_t weight_parts = 1;  // or 2
  float* y = nullptr;        // [rows of the groups][cols]
  bool accumulate = false;   // y += x Wᵀ
  bool upper = false;        // tiles whose columns are all below their rows' numbers are left as they are
};
// Pointers are to device memory; nothing is allocated; an error is that of the launch.
Status gemm(const GemmTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
