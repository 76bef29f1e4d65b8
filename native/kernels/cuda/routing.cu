#include <cuda_bf16.h>

#include <algorithm>
#include <string>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/routing.h"
#include "kernels/cuda/routing_choice.cuh"

namespace espalier::cuda {
namespace {

constexpr int kLogitThreads = 256;
constexpr int kGroupThreads = 1024;
constexpr int kGatherThreads = 128;

// The logit of a router row for a token; a warp's.
template <class T>
__device__ void find_logit(const RouteTask& task, int64_t token, int row) {
  const float* x = task.x + token * task.width;
  const T* weights = static_cast<const T*>(task.weights) + static_cast<int64_t>(row) * task.width;
  const int lane = threadIdx.x % 32;
  float sum = 0;
  // A width that four does not divide leaves rows unaligned.
  const int fours = task.width % 4 == 0 ? task.width / 4 : 0;
#pragma unroll 16
  for (int i = lane; i < fours; i += 32) {
    const float4 w = load_four(weights + 4 * i);
    const float4 v = *reinterpret_cast<const float4*>(x + 4 * i);
    sum += w.x * v.x;
    sum += w.y * v.y;
    sum += w.z * v.z;
    sum += w.w * v.w;
  }
  for (int i = 4 * fours + lane; i < task.width; i += 32) sum += static_cast<float>(weights[i]) * x[i];
  sum = warp_sum(sum);
  if (lane == 0) task.logits[token * task.rows + row] = sum;
}

// Chooses for a token; a block's.
__device__ void choose(const RouteTask& task, int64_t token) {
  __shared__ Choice choice;
  const float* logits = task.logits + token * task.rows;
  if (threadIdx.x < 32) {
    choose_experts(
        task, task.bias, task.skip_below, [&](int row) { return __ldcg(logits + row); }, choice);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < task.top_k; k += kLogitThreads) {
    const int64_t pair = token * task.top_k + k;
    task.gates[pair] = choice.gates[k];
    task.experts[pair] = k < choice.kept ? task.expert_of_row[choice.rows[k]] : -1;
    if (task.slots != nullptr) task.slots[pair] = k < choice.kept ? static_cast<int32_t>(pair) : -1;
  }
}

// Each warp has a router row; the block of a token that ends last chooses.
template <class T>
__global__ void __launch_bounds__(kLogitThreads) route_kernel(const __grid_constant__ RouteTask task) {
  __shared__ bool is_last;
  begin_kernel();
  const int64_t token = blockIdx.y;
  const int row = blockIdx.x * (kLogitThreads / 32) + threadIdx.x / 32;
  if (row < task.rows) find_logit<T>(task, token, row);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(task.unfinished + token, 1) + 1 == static_cast<int>(gridDim.x);
    if (is_last) task.unfinished[token] = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  choose(task, token);
}

__global__ void __launch_bounds__(kGroupThreads) group_kernel(const __grid_constant__ GroupTask task) {
  __shared__ int counts[kMostExperts];
  __shared__ int first_group[kMostExperts];
  __shared__ int of_warps[32];
  begin_kernel();
  const int thread = threadIdx.x;
  const int pairs = task.tokens * task.top_k;
  if (thread < task.experts_count) counts[thread] = 0;
  for (int i = thread; i < task.groups * task.group_tokens; i += kGroupThreads) task.inputs[i] = -1;
  for (int i = thread; i < task.groups; i += kGroupThreads) task.group_experts[i] = -1;
  __syncthreads();
  for (int i = thread; i < pairs; i += kGroupThreads) {
    if (task.experts[i] >= 0) atomicAdd(&counts[task.experts[i]], 1);
  }
  __syncthreads();
  // Groups of the experts before mine.
  const int count = thread < task.experts_count ? counts[thread] : 0;
  const int groups = (count + task.group_tokens - 1) / task.group_tokens;
  int sum = groups;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int left = __shfl_up_sync(~0u, sum, distance);
    if (thread % 32 >= distance) sum += left;
  }
  if (thread % 32 == 31) of_warps[thread / 32] = sum;
  __syncthreads();
  int before = sum - groups;
  for (int warp = 0; warp < thread / 32; ++warp) before += of_warps[warp];
  if (thread < task.experts_count) {
    first_group[thread] = before;
    for (int g = 0; g < groups; ++g) task.group_experts[before + g] = thread;
    counts[thread] = 0;
  }
  __syncthreads();
  for (int i = thread; i < pairs; i += kGroupThreads) {
    const int expert = task.experts[i];
    int slot = -1;
    if (expert >= 0) {
      slot = first_group[expert] * task.group_tokens + atomicAdd(&counts[expert], 1);
      task.inputs[slot] = i / task.top_k;
    }
    task.slots[i] = slot;
  }
}
static_assert(kGroupThreads >= kMostExperts, "a thread counts the groups of an expert");

__global__ void __launch_bounds__(kGatherThreads) gather_kernel(const __grid_constant__ GatherTask task) {
  begin_kernel();
  const int64_t slot = blockIdx.x;
  const int64_t input = task.inputs[slot];
  if (input < 0) return;
  const int size = task.from.parts * task.from.stride / 8;
  const auto* from = reinterpret_cast<const uint4*>(task.from.data) + input * size;
  auto* to = reinterpret_cast<uint4*>(task.to.data) + slot * size;
#pragma unroll 4
  for (int i = threadIdx.x; i < size; i += kGatherThreads) to[i] = from[i];
}

}  // namespace

Status route(const RouteTask& task, cudaStream_t stream) {
  if (task.rows > kMostExperts || task.top_k > kMostChosen) {
    return Status(Code::kUsage, "the GPU's router takes up to " + std::to_string(kMostExperts) + " experts and " +
                                    std::to_string(kMostChosen) + " of them a token, not " + std::to_string(task.rows) +
                                    " and " + std::to_string(task.top_k));
  }
  const unsigned blocks = (task.rows + kLogitThreads / 32 - 1) / (kLogitThreads / 32);
  const auto kernel = task.weights_are_bf16 ? &route_kernel<__nv_bfloat16> : &route_kernel<float>;
  return launch("route", kernel, {dim3(blocks, task.tokens), kLogitThreads}, stream, task);
}

int most_groups(int tokens, int top_k, int experts, int group_tokens) {
  const int pairs = tokens * top_k;
  return std::min(pairs, experts + pairs / group_tokens);
}

Status group_rows(const GroupTask& task, cudaStream_t stream) {
  return launch("group rows", group_kernel, {dim3(1), kGroupThreads}, stream, task);
}

Status gather_rows(const GatherTask& task, cudaStream_t stream) {
  return launch("gather rows", gather_kernel, {dim3(task.slots), kGatherThreads}, stream, task);
}

}  // namespace espalier::cuda
