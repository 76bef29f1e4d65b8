#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sparsegpt.h"

namespace espalier::cuda {
namespace {

constexpr int kTakeThreads = 256;
// A warp walks kRows rows together, as each step loads a row of the factor: lane l has columns l, l + 32 and so on.
constexpr int kRows = 4;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kColumns = kWalked / 32;
constexpr int kFloats = kWalked * kWalked + kWalked + kWarps * kWalked;

// A row of the block; columns from its first to the last of U, and on to the end of `right`.
__global__ void __launch_bounds__(kTakeThreads) take_kernel(const __grid_constant__ TakeBlockTask task) {
  begin_kernel();
  const int64_t i = blockIdx.x;
  const WalkBlock& out = task.out;
  const auto at = [&](int64_t j) {
    return task.reversed[(task.columns - 1 - task.first - i) * task.n + task.columns - 1 - task.first - j];
  };
  for (int64_t j = threadIdx.x; j < kWalked; j += kTakeThreads) {
    const bool inside = i < j && j < task.width;
    out.factor[i * kWalked + j] = inside ? static_cast<float>(at(j)) : 0.0f;
    if (i == j) out.inverse[i] = i < task.width ? static_cast<float>(1 / at(i)) : 0.0f;
  }
  for (int64_t j = threadIdx.x; j < out.right_stride; j += kTakeThreads) {
    const bool inside = i < task.width && task.first + task.width + j < task.columns;
    out.right[i * out.right_stride + j] = inside ? at(task.width + j) : 0.0;
  }
}

__global__ void __launch_bounds__(kThreads) walk_kernel(const __grid_constant__ WalkTask task) {
  extern __shared__ __align__(16) float floats[];
  begin_kernel();
  float* factor = floats;
  float* inverse = floats + kWalked * kWalked;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  float* scores = inverse + kWalked + warp * kWalked;
  for (int i = threadIdx.x; i < kWalked * kWalked / 4; i += kThreads) {
    reinterpret_cast<float4*>(factor)[i] = reinterpret_cast<const float4*>(task.block.factor)[i];
  }
  for (int i = threadIdx.x; i < kWalked; i += kThreads) inverse[i] = task.block.inverse[i];
  __syncthreads();
  const int width = static_cast<int>(task.width);
  const int64_t first_row = (static_cast<int64_t>(blockIdx.x) * kWarps + warp) * kRows;
  float weight[kRows][kColumns];
  bool keeps[kRows][kColumns];
  const float threshold = task.group == 0 ? *task.threshold : 0.0f;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int col = lane + i * 32;
      const bool inside = first_row + r < task.rows && col < width;
      weight[r][i] = inside ? task.weights[(first_row + r) * task.stride + col] : 0.0f;
      keeps[r][i] = col >= width || fabsf(weight[r][i]) * inverse[col] > threshold;
    }
  }
  double* errors = task.errors + first_row * kWalked;
  int until_group = 0;
#pragma unroll
  for (int part = 0; part < kColumns; ++part) {
    for (int step = 0; step < 32; ++step) {
      const int j = part * 32 + step;
      if (task.group > 0 && until_group-- == 0 && j < width) {
        until_group = task.group - 1;
        const int end = j + task.group;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          __syncwarp();
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            scores[lane + i * 32] = fabsf(weight[r][i]) * inverse[lane + i * 32];
          }
          __syncwarp();
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            const int col = lane + i * 32;
            if (col < j || col >= end) continue;
            int before = 0;
            for (int other = j; other < end; ++other) {
              const bool is_lower = scores[other] < scores[col] || (scores[other] == scores[col] && other < col);
              before += is_lower ? 1 : 0;
            }
            keeps[r][i] = before >= task.group - task.keep;
          }
        }
      }
      const float scale = inverse[j];
      float u[kColumns];
#pragma unroll
      for (int i = part; i < kColumns; ++i) u[i] = factor[j * kWalked + lane + i * 32];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float own = keeps[r][part] ? 0.0f : weight[r][part] * scale;
        const float error = __shfl_sync(~0u, own, step);
        if (lane == step && !keeps[r][part]) weight[r][part] = 0;
          // Zeros of the factor leave the columns up to this one as they are.
#pragma unroll
        for (int i = part; i < kColumns; ++i) weight[r][i] = fmaf(-error, u[i], weight[r][i]);
        if (lane == step && first_row + r < task.rows) errors[r * kWalked + j] = -static_cast<double>(error);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int col = lane + i * 32;
      if (first_row + r < task.rows && col < width) task.weights[(first_row + r) * task.stride + col] = weight[r][i];
    }
  }
}

}  // namespace

Status take_block(const TakeBlockTask& task, cudaStream_t stream) {
  return launch("take_block", take_kernel, {dim3(kWalked), kTakeThreads}, stream, task);
}

Status walk_block(const WalkTask& task, cudaStream_t stream) {
  constexpr int kBytes = kFloats * static_cast<int>(sizeof(float));
  ESPALIER_CUDA_TRY(cudaFuncSetAttribute(walk_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid((task.rows + kWarps * kRows - 1) / (kWarps * kRows));
  return launch("walk_block", walk_kernel, {grid, kThreads, kBytes}, stream, task);
}

}  // namespace espalier::cuda
