// Products in float64 on the tensor cores, of the depth that blocked elimination has: C = A·B or C += A·B.
#pragma once

#include <cstdint>

#include "core/status.h"

struct CUstream_st;

namespace espalier::cuda {

inline constexpr int kEliminated = 128;  // the depth: columns of A, rows of B
inline constexpr int kDoubleRows = 128;  // of a tile of C
inline constexpr int kDoubleCols = 64;

// All row-major. A and B are read in whole tiles: A up to a multiple of kDoubleRows rows, B of kDoubleCols columns;
// what is read there beside them changes nothing in C.
template <class T>
struct DoubleGemmTask {
  const double* a = nullptr;  // [rows][kEliminated], 16-byte aligned
  int64_t a_stride = 0;       // even, as b_stride
  const double* b = nullptr;  // [kEliminated][cols], 16-byte aligned
  int64_t b_stride = 0;
  T* c = nullptr;  // [rows][cols]
  int64_t c_stride = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  bool accumulate = false;
  // 0 or more: C is rows from this one on of a matrix of which only the lower triangle is wanted, tiles above its
  // diagonal are left as they are.
  int64_t lower_from = -1;
};
// C is double, or float: then sums are rounded once. Pointers are to device memory; an error is that of the launch.
Status gemm_double(const DoubleGemmTask<double>& task, CUstream_st* stream);
Status gemm_double(const DoubleGemmTask<float>& task, CUstream_st* stream);

}  // namespace espalier::cuda
