#include "kernels/cuda/expert_outputs.h"
#include "kernels/cuda/launch.cuh"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Σ a_j·b_j by a warp; every lane gets it.
__device__ __forceinline__ double dot(const float* a, const float* b, int64_t size) {
  double sum = 0;
#pragma unroll 8
  for (int64_t j = threadIdx.x % 32; j < size; j += 32) sum += static_cast<double>(a[j]) * static_cast<double>(b[j]);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return sum;
}

// A warp has a row.
__global__ void __launch_bounds__(kThreads) row_squares_kernel(const __grid_constant__ RowSquaresTask task) {
  begin_kernel();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= task.rows) return;
  const float* x = task.x + row * task.cols;
  const double sum = dot(x, x, task.cols);
  if (threadIdx.x % 32 == 0) task.squares[row] = sum;
}

// A block has a token; its warps share the pairs of experts, which they read from the caches.
__global__ void __launch_bounds__(kThreads) grams_kernel(const __grid_constant__ OutputGramsTask task) {
  begin_kernel();
  const int64_t token = blockIdx.x;
  const auto output = [&](int64_t expert) { return task.outputs + (expert * task.tokens + token) * task.hidden; };
  double* gram = task.grams + token * task.experts * task.experts;
  for (int64_t i = 0; i < task.experts; ++i) {
    for (int64_t j = i + threadIdx.x / 32; j < task.experts; j += kWarps) {
      const double sum = dot(output(i), output(j), task.hidden);
      if (threadIdx.x % 32 == 0) gram[i * task.experts + j] = gram[j * task.experts + i] = sum;
    }
  }
}

}  // namespace

Status row_squares(const RowSquaresTask& task, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((task.rows + kWarps - 1) / kWarps));
  return launch("row_squares", row_squares_kernel, {grid, kThreads}, stream, task);
}

Status output_grams(const OutputGramsTask& task, cudaStream_t stream) {
  return launch("output_grams", grams_kernel, {dim3(static_cast<unsigned>(task.tokens)), kThreads}, stream, task);
}

}  // namespace espalier::cuda
