#include <string>

#include "kernels/cuda/activations.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/reduce.cuh"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 256;
// A row of the residual stream is one block's: many threads, as there may be one row only.
constexpr int kRowThreads = 1024;
// Weights of a norm that a thread loads before it waits for the row.
constexpr int kAhead = 4;

__global__ void embed_kernel(const __grid_constant__ EmbedTask task) {
  begin_kernel();
  const int64_t row = blockIdx.x;
  const int64_t from = static_cast<int64_t>(task.tokens[row]) * task.width;
  const int width = task.table != nullptr ? task.width : 0;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    task.hidden[row * task.width + i] = task.table_is_bf16
                                            ? __bfloat162float(static_cast<const __nv_bfloat16*>(task.table)[from + i])
                                            : static_cast<const float*>(task.table)[from + i];
  }
  const auto position = static_cast<float>(task.positions[row]);
  for (int i = threadIdx.x; i < task.half; i += blockDim.x) {
    const float angle = position * task.inverse_frequencies[i];
    task.cosines[row * task.half + i] = cosf(angle) * task.scale;
    task.sines[row * task.half + i] = sinf(angle) * task.scale;
  }
}

__global__ void __launch_bounds__(kRowThreads) norm_kernel(const __grid_constant__ NormTask task) {
  extern __shared__ float values[];
  __shared__ float scratch[32];
  __shared__ const float* terms[kMostTerms];
  __shared__ float gates[kMostTerms];
  // The first weights, which no kernel writes, before anything waits.
  float ahead[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int i = threadIdx.x + j * blockDim.x;
    ahead[j] = task.weight != nullptr && i < task.width ? task.weight[i] : 0.0f;
  }
  begin_kernel();
  const int64_t row = blockIdx.x;
  float* hidden = task.hidden + (task.pick != nullptr ? task.pick[row] : row) * task.width;
  // What is added, as pointers and factors that all threads share.
  if (task.source != nullptr && threadIdx.x < task.terms) {
    const int64_t at = row * task.terms + threadIdx.x;
    const int64_t slot = task.slots != nullptr ? task.slots[at] : row;
    terms[threadIdx.x] = slot < 0 ? nullptr : task.source + slot * task.width;
    gates[threadIdx.x] = task.gates != nullptr ? task.gates[at] : 1.0f;
  }
  __syncthreads();
  float squares = 0;
  for (int i = threadIdx.x; i < task.width; i += blockDim.x) {
    float value = hidden[i];
    if (task.source != nullptr) {
      float added = task.bias != nullptr ? task.bias[i] : 0.0f;
#pragma unroll 8
      for (int j = 0; j < task.terms; ++j) {
        if (terms[j] != nullptr) added += gates[j] * terms[j][i];
      }
      value += added;
      hidden[i] = value;
    }
    values[i] = value;
    squares += value * value;
  }
  if (task.weight == nullptr) return;
  const float mean = block_sum(squares, scratch) / static_cast<float>(task.width);
  const float scale = 1.0f / sqrtf(mean + task.epsilon);
  const auto finish = [&](int i, float weight) {
    const bool inside = i < task.width;
    const float value = inside ? values[i] * scale * weight : 0.0f;
    store_parts(task.out, row, i, value);
    if (inside && task.out_floats != nullptr) task.out_floats[row * task.width + i] = value;
  };
  int i = threadIdx.x;
#pragma unroll
  for (int j = 0; j < kAhead; ++j, i += blockDim.x) {
    if (i < task.out.stride) finish(i, ahead[j]);
  }
  for (; i < task.out.stride; i += blockDim.x) finish(i, i < task.width ? task.weight[i] : 0.0f);
}

__global__ void __launch_bounds__(kRowThreads) score_kernel(const __grid_constant__ ScoreTask task) {
  __shared__ float scratch[32];
  begin_kernel();
  const float* logits = task.logits + static_cast<int64_t>(blockIdx.x) * task.width;
  float most = -INFINITY;
  for (int i = threadIdx.x; i < task.width; i += blockDim.x) most = fmaxf(most, logits[i]);
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = most;
  __syncthreads();
  most = warp_max(scratch[threadIdx.x % 32]);
  __syncthreads();
  float sum = 0;
  for (int i = threadIdx.x; i < task.width; i += blockDim.x) sum += expf(logits[i] - most);
  sum = block_sum(sum, scratch);
  if (threadIdx.x != 0) return;
  const float target = logits[task.targets[blockIdx.x]];
  task.scores[blockIdx.x] = static_cast<double>(target) - static_cast<double>(most) - log(static_cast<double>(sum));
}

// The larger of two, of equal ones the one of lower place.
struct Best {
  float value;
  int at;

  __device__ void take(float other, int place) {
    if (other > value || (other == value && place < at)) {
      value = other;
      at = place;
    }
  }
  __device__ void take_from_warp() {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      take(__shfl_xor_sync(~0u, value, distance), __shfl_xor_sync(~0u, at, distance));
    }
  }
};

__global__ void __launch_bounds__(kRowThreads) largest_kernel(const __grid_constant__ LargestTask task) {
  __shared__ Best of_warps[32];
  begin_kernel();
  const float* logits = task.logits + static_cast<int64_t>(blockIdx.x) * task.width;
  Best best{-INFINITY, task.width - 1};
#pragma unroll 8
  for (int i = threadIdx.x; i < task.width; i += kRowThreads) {
    // Places ascend: only a larger one counts.
    if (logits[i] > best.value) best = {logits[i], i};
  }
  best.take_from_warp();
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = best;
  __syncthreads();
  best = of_warps[threadIdx.x % 32];
  best.take_from_warp();
  if (threadIdx.x == 0) task.places[blockIdx.x] = best.at;
}

}  // namespace

Status embed(const EmbedTask& task, cudaStream_t stream) {
  return launch("embed", embed_kernel, {dim3(task.rows), kThreads}, stream, task);
}

Status add_and_norm(const NormTask& task, cudaStream_t stream) {
  if (task.width > kMostWidth || task.terms > kMostTerms) {
    return Status(Code::kUsage, "the GPU's norm takes rows of up to " + std::to_string(kMostWidth) + " and sums of " +
                                    std::to_string(kMostTerms) + ", not " + std::to_string(task.width) + " and " +
                                    std::to_string(task.terms));
  }
  const unsigned threads = task.width >= kRowThreads ? kRowThreads : kThreads;
  return launch("add_and_norm", norm_kernel,
                {dim3(task.rows), threads, task.width * static_cast<int64_t>(sizeof(float))}, stream, task);
}

Status score(const ScoreTask& task, cudaStream_t stream) {
  return launch("score", score_kernel, {dim3(task.rows), kRowThreads}, stream, task);
}

Status find_largest(const LargestTask& task, cudaStream_t stream) {
  return launch("find_largest", largest_kernel, {dim3(task.rows), kRowThreads}, stream, task);
}

}  // namespace espalier::cuda
