// What pruning computes of a layer's activations beside products: SwiGLU, sums of columns, inputs as products want
// them. Pointers are to device memory; nothing is allocated; an error is that of the launch.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/parts.h"

struct CUstream_st;

namespace espalier::cuda {

// Floats as sums of parts. Rows of `out` behind those of the source are zeros.
struct SplitTask {
  int64_t rows = 0;
  int64_t cols = 0;
  const float* source = nullptr;  // [rows][cols]
  int64_t out_rows = 0;
  PartRows out;
};
Status split_rows(const SplitTask& task, CUstream_st* stream);

// silu(gate) ⊙ up, as floats in the place of the gate and as parts.
struct GateTask {
  int64_t rows = 0;
  int64_t cols = 0;
  float* gate = nullptr;      // [rows][cols]
  const float* up = nullptr;  // [rows][cols]
  PartRows out;
};
Status gate_rows(const GateTask& task, CUstream_st* stream);

// sums[g][j] += Σ over the rows of group g of gate · x_j, or of its square, in float64 and in the order of the rows:
// the bits do not depend on how rows are cut into launches.
struct ColumnsTask {
  const GemmGroup* groups = nullptr;
  int32_t group_count = 0;
  const float* x = nullptr;       // [?][cols]
  const int32_t* rows = nullptr;  // the row of x that each row of the groups is; without: the same
  const float* gates = nullptr;   // of each row of the groups; without: 1
  int64_t cols = 0;
  double* sums = nullptr;  // [group_count][cols]
};
Status add_columns(const ColumnsTask& task, CUstream_st* stream);
Status add_squares(const ColumnsTask& task, CUstream_st* stream);

// gate · x, transposed: out row j holds column j of `rows` rows from `first_row` on, padded with zeros to out.stride.
struct TransposeTask {
  const float* x = nullptr;       // [?][cols]
  const int32_t* from = nullptr;  // the row of x that each row is; without: the same
  const float* gates = nullptr;   // without: 1
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  PartRows out;  // [cols]
};
Status transpose_rows(const TransposeTask& task, CUstream_st* stream);

// to[i] += from[i].
Status add_floats(float* to, const float* from, int64_t count, CUstream_st* stream);

}  // namespace espalier::cuda
