#include "kernels/cuda/calibration.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/parts.cuh"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumnThreads = 128;
// Rows whose elements are loaded together, as sums wait for each other.
constexpr int kAhead = 8;
constexpr int kTile = 32;
constexpr int kTileThreads = 256;

__global__ void split_kernel(const __grid_constant__ SplitTask task) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < task.out.stride; i += kThreads) {
    const bool inside = row < task.rows && i < task.cols;
    store_parts(task.out, row, i, inside ? task.source[row * task.cols + i] : 0.0f);
  }
}

__global__ void gate_kernel(const __grid_constant__ GateTask task) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < task.out.stride; i += kThreads) {
    float value = 0;
    if (i < task.cols) {
      const float gate = task.gate[row * task.cols + i];
      value = gate / (1.0f + expf(-gate)) * task.up[row * task.cols + i];
      task.gate[row * task.cols + i] = value;
    }
    store_parts(task.out, row, i, value);
  }
}

// A thread has a column of a group.
template <bool kSquared>
__global__ void __launch_bounds__(kColumnThreads) columns_kernel(const __grid_constant__ ColumnsTask task) {
  begin_kernel();
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (col >= task.cols) return;
  const int32_t first = task.groups[blockIdx.y].first_row;
  const int32_t rows = task.groups[blockIdx.y].rows;
  double* at = task.sums + blockIdx.y * task.cols + col;
  double sum = *at;
  for (int32_t begin = 0; begin < rows; begin += kAhead) {
    float x[kAhead];
    float gate[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t row = first + min(begin + i, rows - 1);
      x[i] = task.x[(task.rows != nullptr ? task.rows[row] : row) * task.cols + col];
      gate[i] = task.gates != nullptr ? task.gates[row] : 1.0f;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const double value = static_cast<double>(gate[i]) * static_cast<double>(x[i]);
      if (begin + i < rows) sum = __dadd_rn(sum, kSquared ? __dmul_rn(value, value) : value);
    }
  }
  *at = sum;
}

__global__ void __launch_bounds__(kTileThreads) transpose_kernel(const __grid_constant__ TransposeTask task) {
  __shared__ float tile[kTile][kTile + 1];
  begin_kernel();
  const int lane = threadIdx.x % kTile;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t first_col = static_cast<int64_t>(blockIdx.y) * kTile;
  for (int i = threadIdx.x / kTile; i < kTile; i += kTileThreads / kTile) {
    const int64_t row = task.first_row + first_row + i;
    float value = 0;
    if (first_row + i < task.rows && first_col + lane < task.cols) {
      const float gate = task.gates != nullptr ? task.gates[row] : 1.0f;
      value = gate * task.x[(task.from != nullptr ? task.from[row] : row) * task.cols + first_col + lane];
    }
    tile[i][lane] = value;
  }
  __syncthreads();
  for (int i = threadIdx.x / kTile; i < kTile; i += kTileThreads / kTile) {
    if (first_col + i < task.cols)
      store_parts(task.out, first_col + i, static_cast<int>(first_row) + lane, tile[lane][i]);
  }
}

__global__ void add_kernel(float* to, const float* from, int64_t count) {
  begin_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) to[i] += from[i];
}

dim3 columns_grid(const ColumnsTask& task) {
  return dim3((task.cols + kColumnThreads - 1) / kColumnThreads, task.group_count);
}

}  // namespace

Status split_rows(const SplitTask& task, cudaStream_t stream) {
  return launch("split_rows", split_kernel, {dim3(task.out_rows), kThreads}, stream, task);
}

Status gate_rows(const GateTask& task, cudaStream_t stream) {
  return launch("gate_rows", gate_kernel, {dim3(task.rows), kThreads}, stream, task);
}

Status add_columns(const ColumnsTask& task, cudaStream_t stream) {
  return launch("add_columns", columns_kernel<false>, {columns_grid(task), kColumnThreads}, stream, task);
}

Status add_squares(const ColumnsTask& task, cudaStream_t stream) {
  return launch("add_squares", columns_kernel<true>, {columns_grid(task), kColumnThreads}, stream, task);
}

Status transpose_rows(const TransposeTask& task, cudaStream_t stream) {
  const dim3 grid(task.out.stride / kTile, (task.cols + kTile - 1) / kTile);
  return launch("transpose_rows", transpose_kernel, {grid, kTileThreads}, stream, task);
}

Status add_floats(float* to, const float* from, int64_t count, cudaStream_t stream) {
  return launch("add_floats", add_kernel, {dim3((count + kThreads - 1) / kThreads), kThreads}, stream, to, from, count);
}

}  // namespace espalier::cuda
