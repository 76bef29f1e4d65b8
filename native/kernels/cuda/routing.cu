#include <cuda_bf16.h>

#include <algorithm>
#include <climits>
#include <string>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/routing.h"

namespace espalier::cuda {
namespace {

constexpr int kLogitThreads = 256;
constexpr int kGroupThreads = 1024;
constexpr int kGatherThreads = 128;

template <class T>
__device__ __forceinline__ float4 load_four(const T* from);
template <>
__device__ __forceinline__ float4 load_four(const float* from) {
  return __ldg(reinterpret_cast<const float4*>(from));
}
template <>
__device__ __forceinline__ float4 load_four(const __nv_bfloat16* from) {
  const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
          __uint_as_float(bits.y & 0xffff0000u)};
}

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

// Floats as integers of the same order, all above 0.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// Calls take(place) with the `wanted` largest of the keys that are not `forbidden`, largest first, of equal ones the
// first; a warp's. Each lane keeps the best of its own keys, and looks for another when that is taken.
template <class Take>
__device__ void take_largest(const float* keys, bool* forbidden, int count, int wanted, const Take& take) {
  uint32_t best = 0;
  int at = INT_MAX;
  const auto look = [&] {
    best = 0;
    at = INT_MAX;
    for (int i = threadIdx.x; i < count; i += 32) {
      const uint32_t key = ordered(keys[i]);
      if (!forbidden[i] && key > best) {
        best = key;
        at = i;
      }
    }
  };
  look();
  for (int k = 0; k < wanted; ++k) {
    const uint32_t most = __reduce_max_sync(~0u, best);
    const int place = static_cast<int>(__reduce_min_sync(~0u, best == most ? static_cast<uint32_t>(at) : UINT_MAX));
    take(k, place);
    if (place == at) {
      forbidden[place] = true;
      look();
    }
  }
  __syncwarp();
}

// Turns the logits of a token into scores, in shared memory.
__device__ void score_rows(const RouteTask& task, const float* logits, float* scores) {
  float most = -INFINITY;
  for (int i = threadIdx.x; i < task.rows; i += 32) {
    scores[i] = __ldcg(logits + i);
    most = fmaxf(most, scores[i]);
  }
  most = warp_max(most);
  float total = 0;
  for (int i = threadIdx.x; i < task.rows; i += 32) {
    const float x = scores[i];
    scores[i] = task.sigmoid ? expf(fminf(x, 0.0f)) / (1.0f + expf(-fabsf(x))) : expf(x - most);
    total += scores[i];
  }
  if (!task.sigmoid) {
    const float scale = 1.0f / warp_sum(total);
    for (int i = threadIdx.x; i < task.rows; i += 32) scores[i] *= scale;
  }
  __syncwarp();
}

// Forbids the rows of all but the best groups.
__device__ void keep_groups(const RouteTask& task, const float* keys, float* of_groups, bool* forbidden) {
  __shared__ bool taken[kMostExperts];
  const int size = task.rows / task.groups;
  for (int g = threadIdx.x; g < task.groups; g += 32) {
    float first = -INFINITY;
    float second = size > 1 ? -INFINITY : 0.0f;
    for (int i = g * size; i < (g + 1) * size; ++i) {
      if (keys[i] > first) {
        if (size > 1) second = first;
        first = keys[i];
      } else if (keys[i] > second && size > 1) {
        second = keys[i];
      }
    }
    of_groups[g] = first + second;
    taken[g] = false;
  }
  for (int i = threadIdx.x; i < task.rows; i += 32) forbidden[i] = true;
  __syncwarp();
  take_largest(of_groups, taken, task.groups, task.top_groups, [&](int, int g) {
    for (int i = g * size + threadIdx.x; i < (g + 1) * size; i += 32) forbidden[i] = false;
  });
}

// Experts from the first on whose gate is small are left out; returns how many are not. One thread's.
__device__ int skip_small(const RouteTask& task, float* gates) {
  int kept = 1;
  while (kept < task.top_k && !(gates[kept] < task.skip_below[kept - 1] * gates[0])) ++kept;
  float all = 0;
  float left = 0;
  for (int k = 0; k < task.top_k; ++k) {
    all += gates[k];
    if (k < kept) left += gates[k];
  }
  for (int k = 0; k < task.top_k; ++k) gates[k] = k < kept ? gates[k] * (all / left) : 0.0f;
  return kept;
}

// Chooses for a token; a warp's.
__device__ void choose(const RouteTask& task, int64_t token) {
  __shared__ float scores[kMostExperts];
  __shared__ float keys[kMostExperts];
  __shared__ float of_groups[kMostExperts];
  __shared__ bool forbidden[kMostExperts];
  __shared__ int chosen[kMostChosen];
  __shared__ float gates[kMostChosen];
  score_rows(task, task.logits + token * task.rows, scores);
  for (int i = threadIdx.x; i < task.rows; i += 32) {
    const float key = task.bias != nullptr ? scores[i] + task.bias[i] : scores[i];
    keys[i] = isnan(key) ? -INFINITY : key;
    forbidden[i] = false;
  }
  __syncwarp();
  if (task.top_groups < task.groups) keep_groups(task, keys, of_groups, forbidden);
  take_largest(keys, forbidden, task.rows, task.top_k, [&](int k, int row) {
    if (threadIdx.x == 0) chosen[k] = row;
  });
  float total = 0;
  for (int k = threadIdx.x; k < task.top_k; k += 32) total += scores[chosen[k]];
  const float divisor = task.renormalise ? warp_sum(total) + 1e-20f : 1.0f;
  for (int k = threadIdx.x; k < task.top_k; k += 32) gates[k] = scores[chosen[k]] / divisor * task.scaling;
  __syncwarp();
  int kept = task.top_k;
  if (task.skip_below != nullptr) {
    if (threadIdx.x == 0) kept = skip_small(task, gates);
    kept = __shfl_sync(~0u, kept, 0);
    __syncwarp();
  }
  for (int k = threadIdx.x; k < task.top_k; k += 32) {
    const int64_t pair = token * task.top_k + k;
    task.gates[pair] = gates[k];
    task.experts[pair] = k < kept ? task.expert_of_row[chosen[k]] : -1;
    if (task.slots != nullptr) task.slots[pair] = k < kept ? static_cast<int32_t>(pair) : -1;
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
  if (!is_last || threadIdx.x >= 32) return;
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
