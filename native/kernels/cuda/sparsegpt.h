// The steps of SparseGPT's walk (prune/sparsegpt.h) in memory of the device: columns from left to right in blocks of at
// most kWalked. Pointers are to device memory; an error is that of the launch.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "kernels/cuda/gemm_double.h"

struct CUstream_st;

namespace espalier::cuda {

inline constexpr int kWalked = kEliminated;

// What the walk reads of one block of columns.
struct WalkBlock {
  float* factor = nullptr;   // [kWalked][kWalked]: U within the block, right of its diagonal; zeros elsewhere
  float* inverse = nullptr;  // [kWalked]: 1 / U_jj
  double* right = nullptr;   // [kWalked][right_stride]: U of the columns behind the block, zeros behind those
  int64_t right_stride = 0;  // a multiple of kDoubleCols
};

// Columns [first, first + width) of U, upper triangular, of which `reversed` [n][n] holds U_ij at
// (columns − 1 − i, columns − 1 − j).
struct TakeBlockTask {
  const double* reversed = nullptr;
  int64_t n = 0;
  int64_t columns = 0;
  int64_t first = 0;
  int64_t width = 0;
  WalkBlock out;
};
Status take_block(const TakeBlockTask& task, CUstream_st* stream);

// Chooses and eliminates within a block. Unstructured (group 0): scores |w| / U_jj at the beginning up to and including
// *threshold go. N:M: at every group-th column each row keeps `keep` of the next `group`; of equal scores the lower
// column goes.
struct WalkTask {
  float* weights = nullptr;  // [rows][stride], from the block's first column on
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t width = 0;  // of the block
  WalkBlock block;
  const float* threshold = nullptr;
  int32_t keep = 0;
  int32_t group = 0;
  double* errors = nullptr;  // [rows][kWalked]: minus each column's error over U_jj; zeros behind `width`
};
Status walk_block(const WalkTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
