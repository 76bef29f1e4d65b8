#include "kernels/cuda/gemm_double.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx/async.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/mma_double.cuh"

namespace espalier::cuda {
namespace {

// Four warps, 2 × 2 of them, each with 64 × 32 of a tile's sums in its registers. C is read before the product: with a
// depth of 128 its bytes take as long as the arithmetic, and two blocks on a multiprocessor overlap them.
constexpr int kThreads = 128;
constexpr int kStages = 3;
constexpr int kDepth = 16;  // of a stage
constexpr int kSteps = kEliminated / kDepth;
constexpr int kWarpRows = 64;
constexpr int kWarpCols = 32;
constexpr int kRowFragments = kWarpRows / 16;
constexpr int kColFragments = kWarpCols / 8;
// Rows of a stage are 4 doubles longer than a multiple of 16, so that what half a warp loads of four rows lies in
// different banks.
constexpr int kAStride = kDepth + 4;
constexpr int kBStride = kDoubleCols + 4;
constexpr int kADoubles = kDoubleRows * kAStride;
constexpr int kStageDoubles = kADoubles + kDepth * kBStride;
constexpr int kAChunks = kDepth / 2;  // of 16 bytes in a row
constexpr int kBChunks = kDoubleCols / 2;

template <class T>
__global__ void __launch_bounds__(kThreads, 2) gemm_double_kernel(const __grid_constant__ DoubleGemmTask<T> task) {
  extern __shared__ __align__(128) double stages[];
  begin_kernel();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kDoubleRows;
  const int64_t first_col = static_cast<int64_t>(blockIdx.y) * kDoubleCols;
  if (task.lower_from >= 0 && first_col >= task.lower_from + first_row + kDoubleRows) return;
  const int thread = threadIdx.x;
  const auto load = [&](int step) {
    if (step < kSteps) {
      double* stage = stages + step % kStages * kStageDoubles;
      for (int i = thread; i < kDoubleRows * kAChunks; i += kThreads) {
        const int row = i / kAChunks;
        const int at = i % kAChunks * 2;
        ptx::async_copy_16(ptx::shared_address(stage + row * kAStride + at),
                           task.a + (first_row + row) * task.a_stride + step * kDepth + at, 16);
      }
      for (int i = thread; i < kDepth * kBChunks; i += kThreads) {
        const int row = i / kBChunks;
        const int at = i % kBChunks * 2;
        ptx::async_copy_16(ptx::shared_address(stage + kADoubles + row * kBStride + at),
                           task.b + (step * kDepth + row) * task.b_stride + first_col + at, 16);
      }
    }
    ptx::async_commit();
  };
  for (int step = 0; step < kStages - 1; ++step) load(step);

  const int warp = thread / 32;
  const int group = thread % 32 / 4;
  const int lane = thread % 4;
  const int warp_row = warp % 2 * kWarpRows;
  const int warp_col = warp / 2 * kWarpCols;
  const auto each = [&](const auto& use) {
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
      for (int j = 0; j < kColFragments; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t row = first_row + warp_row + i * 16 + e / 2 * 8 + group;
          const int64_t col = first_col + warp_col + j * 8 + lane * 2 + e % 2;
          if (row < task.rows && col < task.cols) use(i, j, e, task.c + row * task.c_stride + col);
        }
      }
    }
  };
  double sum[kRowFragments][kColFragments][4] = {};
  if (task.accumulate) each([&](int i, int j, int e, const T* c) { sum[i][j][e] = static_cast<double>(*c); });
  for (int step = 0; step < kSteps; ++step) {
    ptx::async_wait<kStages - 2>();
    // All have what this step multiplies, and are done with the stage that is loaded into next.
    __syncthreads();
    load(step + kStages - 1);
    const double* a = stages + step % kStages * kStageDoubles + (warp_row + group) * kAStride + lane;
    const double* b = stages + step % kStages * kStageDoubles + kADoubles + lane * kBStride + warp_col + group;
#pragma unroll
    for (int k = 0; k < kDepth; k += 8) {
      double right[kColFragments][2];
#pragma unroll
      for (int j = 0; j < kColFragments; ++j) {
        right[j][0] = b[k * kBStride + j * 8];
        right[j][1] = b[(k + 4) * kBStride + j * 8];
      }
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
        const double* row = a + i * 16 * kAStride + k;
        const double left[4] = {row[0], row[8 * kAStride], row[4], row[8 * kAStride + 4]};
#pragma unroll
        for (int j = 0; j < kColFragments; ++j) ptx::mma_m16n8k8(sum[i][j], left, right[j][0], right[j][1]);
      }
    }
  }
  each([&](int i, int j, int e, T* c) { *c = static_cast<T>(sum[i][j][e]); });
}

template <class T>
Status start(const DoubleGemmTask<T>& task, cudaStream_t stream) {
  if (task.rows < 1 || task.cols < 1) return Status::ok();
  constexpr int kBytes = kStages * kStageDoubles * static_cast<int>(sizeof(double));
  ESPALIER_CUDA_TRY(cudaFuncSetAttribute(gemm_double_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid((task.rows + kDoubleRows - 1) / kDoubleRows, (task.cols + kDoubleCols - 1) / kDoubleCols);
  return launch("gemm_double", gemm_double_kernel<T>, {grid, kThreads, kBytes}, stream, task);
}

}  // namespace

Status gemm_double(const DoubleGemmTask<double>& task, cudaStream_t stream) { return start(task, stream); }
Status gemm_double(const DoubleGemmTask<float>& task, cudaStream_t stream) { return start(task, stream); }

}  // namespace espalier::cuda
