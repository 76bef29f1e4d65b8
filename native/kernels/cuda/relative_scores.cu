#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/relative_scores.h"

namespace espalier::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;

__device__ __forceinline__ double magnitude(float weight) { return fabs(static_cast<double>(weight)); }

__device__ __forceinline__ double inverse_of(double sum) { return sum > 0 ? 1 / sum : 0; }

// A thread adds up a column from the first row on, as the CPU does. Rows are loaded together, as sums wait for each
// other.
__global__ void __launch_bounds__(kWarp) columns_kernel(const __grid_constant__ RelativeTask task) {
  constexpr int kAhead = 32;
  begin_kernel();
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  if (col >= task.cols) return;
  double sum = 0;
  for (int64_t first = 0; first < task.rows; first += kAhead) {
    float weights[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) weights[i] = task.weights[min(first + i, task.rows - 1) * task.cols + col];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < task.rows) sum += magnitude(weights[i]);
    }
  }
  task.shares[col] = inverse_of(sum);
}

// A thread adds up a row from the first column on. A warp has 32 rows, which come through shared memory.
__global__ void __launch_bounds__(kWarp) rows_kernel(const __grid_constant__ RelativeTask task) {
  __shared__ float tile[kWarp][kWarp + 1];
  begin_kernel();
  const int lane = threadIdx.x;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kWarp;
  double sum = 0;
  for (int64_t first = 0; first < task.cols; first += kWarp) {
    const int64_t col = min(first + lane, task.cols - 1);
#pragma unroll
    for (int i = 0; i < kWarp; ++i) tile[i][lane] = task.weights[min(first_row + i, task.rows - 1) * task.cols + col];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kWarp; ++i) {
      if (first + i < task.cols) sum += magnitude(tile[lane][i]);
    }
    __syncwarp();
  }
  if (first_row + lane < task.rows) task.shares[task.cols + first_row + lane] = inverse_of(sum);
}

__global__ void __launch_bounds__(kThreads) scores_kernel(const __grid_constant__ RelativeTask task) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  const double by_row = task.shares[task.cols + row];
  for (int64_t col = threadIdx.x; col < task.cols; col += kThreads) {
    float& weight = task.weights[row * task.cols + col];
    weight = static_cast<float>(magnitude(weight) * (task.shares[col] + by_row) * task.lengths[col]);
  }
}

}  // namespace

Status score_relative(const RelativeTask& task, cudaStream_t stream) {
  const auto warps = [](int64_t count) { return dim3(static_cast<unsigned>((count + kWarp - 1) / kWarp)); };
  ESPALIER_TRY(launch("relative_columns", columns_kernel, {warps(task.cols), kWarp}, stream, task));
  ESPALIER_TRY(launch("relative_rows", rows_kernel, {warps(task.rows), kWarp}, stream, task));
  return launch("score_relative", scores_kernel, {dim3(static_cast<unsigned>(task.rows)), kThreads}, stream, task);
}

}  // namespace espalier::cuda
