#include "kernels/cuda/gemm_double.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/triangular_inverse.h"

namespace espalier::cuda {
namespace {

constexpr int kBlock = kEliminated;
constexpr int kFillThreads = 256;
constexpr int kTile = 32;
constexpr int kHeld = kBlock / kTile;  // rows and columns of a block that a thread has
constexpr int kBlockThreads = kTile * kTile;
constexpr int kTransposeThreads = 256;

__global__ void fill_kernel(const __grid_constant__ HessianTask task, int64_t n) {
  begin_kernel();
  const int64_t i = blockIdx.x;
  const int64_t row = task.width - 1 - i;
  for (int64_t j = threadIdx.x; j < n; j += kFillThreads) {
    double value = i == j ? 1 : 0;
    if (j <= i && i < task.width) {
      const int64_t col = task.width - 1 - j;
      const double own = task.gram[row * task.stride + col];
      const double pooled = task.pooled != nullptr ? task.pooled_scale * task.pooled[row * task.width + col] : 0;
      value = task.scale * own + pooled;
      if (i == j) value = (own == 0 ? 1 : task.scale * task.diagonal * own + pooled) + task.damping;
    }
    task.out[i * n + j] = value;
  }
}

// Eliminating column k of A = L·Lᵀ takes P = L's column k below the diagonal and q = row k of L⁻¹ up to its diagonal,
// and leaves, of the rows i below:
//   A[i][j] − P[i]·P[j]   right of k, what is left to factor;
//   R[i][j] − P[i]·q[j]   up to k, −Σ L[i][·]·L⁻¹[·][j] so far, row i of L⁻¹ but for 1 / L[i][i].
// So one matrix is both, column k of A making room for column k of R. Blocks of columns go the same way as columns.

// A block on the diagonal: L⁻¹ to `inverse` (zeros above its diagonal), −L⁻ᵀ to `negative` [kBlock][kBlock]. Thread
// (r, c) holds the elements (r + 32a, c + 32b).
__global__ void __launch_bounds__(kBlockThreads)
    block_kernel(const double* block, int64_t stride, double* inverse, double* negative, int32_t* failed) {
  __shared__ double column[2][kBlock];
  __shared__ double row[2][kBlock];
  __shared__ double scale[2];
  begin_kernel();
  const int r = threadIdx.x / kTile;
  const int c = threadIdx.x % kTile;
  double value[kHeld][kHeld];
#pragma unroll
  for (int a = 0; a < kHeld; ++a) {
#pragma unroll
    for (int b = 0; b < kHeld; ++b) {
      const int i = r + a * kTile;
      const int j = c + b * kTile;
      value[a][b] = j <= i ? block[i * stride + j] : 0.0;
    }
  }
#pragma unroll
  for (int part = 0; part < kHeld; ++part) {
    for (int step = 0; step < kTile; ++step) {
      const int k = part * kTile + step;
      const int buffer = k % 2;
      if (r == step) {
#pragma unroll
        for (int b = 0; b < kHeld; ++b) row[buffer][c + b * kTile] = value[part][b];
      }
      if (c == step) {
#pragma unroll
        for (int a = 0; a < kHeld; ++a) column[buffer][r + a * kTile] = value[a][part];
      }
      if (r == step && c == step) {
        const double pivot = value[part][part];
        const bool is_positive = pivot > 0 && isfinite(pivot);
        if (!is_positive) *failed = 1;
        scale[buffer] = is_positive ? 1 / sqrt(pivot) : 1;
      }
      // The other buffer is written next, by threads that are all behind this.
      __syncthreads();
      const double d = scale[buffer];
      double left[kHeld];
      double right[kHeld];
#pragma unroll
      for (int a = 0; a < kHeld; ++a) left[a] = column[buffer][r + a * kTile] * d;
#pragma unroll
      for (int b = 0; b < kHeld; ++b) {
        const int j = c + b * kTile;
        right[b] = j < k ? row[buffer][j] * d : j == k ? d : column[buffer][j] * d;
      }
#pragma unroll
      for (int a = 0; a < kHeld; ++a) {
        const int i = r + a * kTile;
#pragma unroll
        for (int b = 0; b < kHeld; ++b) {
          const int j = c + b * kTile;
          if (i > k && j <= i) {
            value[a][b] = (j == k ? 0.0 : value[a][b]) - left[a] * right[b];
          } else if (i == k && j <= k) {
            value[a][b] = right[b];
          }
        }
      }
    }
  }
#pragma unroll
  for (int a = 0; a < kHeld; ++a) {
#pragma unroll
    for (int b = 0; b < kHeld; ++b) {
      const int i = r + a * kTile;
      const int j = c + b * kTile;
      inverse[i * stride + j] = value[a][b];
      negative[j * kBlock + i] = -value[a][b];
    }
  }
}

// to[c][r] = −from[r][c].
__global__ void __launch_bounds__(kTransposeThreads) negate_kernel(const double* from, double* to, int64_t stride) {
  __shared__ double tile[kTile][kTile + 1];
  begin_kernel();
  const int lane = threadIdx.x % kTile;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t first_col = static_cast<int64_t>(blockIdx.y) * kTile;
  for (int i = threadIdx.x / kTile; i < kTile; i += kTransposeThreads / kTile) {
    tile[i][lane] = -from[(first_row + i) * kBlock + first_col + lane];
  }
  __syncthreads();
  for (int i = threadIdx.x / kTile; i < kTile; i += kTransposeThreads / kTile) {
    to[(first_col + i) * stride + first_row + lane] = tile[lane][i];
  }
}

}  // namespace

Status fill_hessian(const HessianTask& task, cudaStream_t stream) {
  const int64_t n = blocked_width(task.width);
  return launch("fill_hessian", fill_kernel, {dim3(n), kFillThreads}, stream, task, n);
}

Status invert_cholesky(double* a, int64_t n, double* work, int32_t* failed, cudaStream_t stream) {
  double* right = work;                   // [kBlock][n]: row block k of L⁻¹, then P transposed
  double* below = work + kBlock * n;      // [n][kBlock]: −P
  double* negative = below + kBlock * n;  // [kBlock][kBlock]
  constexpr size_t kDouble = sizeof(double);
  for (int64_t k = 0; k < n; k += kBlock) {
    const int64_t next = k + kBlock;
    double* inverse = right + k;
    const double* block = a + k * n + k;
    ESPALIER_TRY(
        launch("factor_block", block_kernel, {dim3(1), kBlockThreads}, stream, block, n, inverse, negative, failed));
    ESPALIER_TRY(gemm_double({.a = inverse,
                              .a_stride = n,
                              .b = a + k * n,
                              .b_stride = n,
                              .c = right,
                              .c_stride = n,
                              .rows = kBlock,
                              .cols = k},
                             stream));
    ESPALIER_CUDA_TRY(cudaMemcpy2DAsync(a + k * n, static_cast<size_t>(n) * kDouble, right,
                                        static_cast<size_t>(n) * kDouble, static_cast<size_t>(next) * kDouble, kBlock,
                                        cudaMemcpyDeviceToDevice, stream));
    if (next == n) break;
    ESPALIER_TRY(gemm_double({.a = a + next * n + k,
                              .a_stride = n,
                              .b = negative,
                              .b_stride = kBlock,
                              .c = below,
                              .c_stride = kBlock,
                              .rows = n - next,
                              .cols = kBlock},
                             stream));
    const double* from = below;
    ESPALIER_TRY(launch("negate", negate_kernel, {dim3((n - next) / kTile, kBlock / kTile), kTransposeThreads}, stream,
                        from, right + next, n));
    ESPALIER_CUDA_TRY(cudaMemset2DAsync(a + next * n + k, static_cast<size_t>(n) * kDouble, 0, kBlock * kDouble,
                                        static_cast<size_t>(n - next), stream));
    ESPALIER_TRY(gemm_double({.a = below,
                              .a_stride = kBlock,
                              .b = right,
                              .b_stride = n,
                              .c = a + next * n,
                              .c_stride = n,
                              .rows = n - next,
                              .cols = n,
                              .accumulate = true,
                              .lower_from = next},
                             stream));
  }
  return Status::ok();
}

}  // namespace espalier::cuda
