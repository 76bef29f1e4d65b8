// The choice of a token's experts from the logits of the router's rows: the work of some whole warps of a block, the
// first ones, which `sync` lets wait for each other.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/routing.h"

namespace espalier::cuda {

// Room for a choice, in shared memory, and what was chosen.
struct Choice {
  float scores[kMostExperts];
  // In the order of the keys that rows are chosen by, and of groups; kLeftOut: not to be chosen, 0: already chosen.
  uint32_t keys[kMostExperts];
  uint32_t of_groups[kMostExperts];
  int rows[kMostChosen];
  float gates[kMostChosen];
  int kept;
};

// Four weights of a router.
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

inline constexpr uint32_t kLeftOut = 1;

// Floats as integers of the same order, all above kLeftOut; NaN comes last.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(isnan(value) ? -INFINITY : value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// How many of the keys come before key i: the larger ones, and of equal ones the first.
__device__ __forceinline__ int rank_of(const uint32_t* keys, int count, int i) {
  const uint32_t mine = keys[i];
  int rank = 0;
#pragma unroll 1
  for (int j = 0; j < count; ++j) {
    const uint32_t other = keys[j];
    rank += other > mine || (other == mine && j < i) ? 1 : 0;
  }
  return rank;
}

// Leaves the rows of the best groups only, by the sum of the two best of each.
template <class Sync>
__device__ __noinline__ void keep_groups(const RouteTask& task, const float* bias, Choice& choice, const Sync& sync,
                                         int thread, int threads) {
  const int size = task.rows / task.groups;
  for (int g = thread; g < task.groups; g += threads) {
    float first = -INFINITY;
    float second = size > 1 ? -INFINITY : 0.0f;
#pragma unroll 1
    for (int i = g * size; i < (g + 1) * size; ++i) {
      const float score = choice.scores[i] + (bias != nullptr ? bias[i] : 0.0f);
      const float key = isnan(score) ? -INFINITY : score;
      if (key > first) {
        if (size > 1) second = first;
        first = key;
      } else if (key > second && size > 1) {
        second = key;
      }
    }
    choice.of_groups[g] = ordered(first + second);
  }
  sync();
  for (int i = thread; i < task.rows; i += threads) {
    if (rank_of(choice.of_groups, task.groups, i / size) >= task.top_groups) choice.keys[i] = kLeftOut;
  }
  sync();
}

// Experts from the first on whose gate is small are left out; returns how many are not. One thread's.
inline __device__ __noinline__ int skip_small(const RouteTask& task, const float* skip_below, float* gates) {
  int kept = 1;
#pragma unroll 1
  while (kept < task.top_k && !(gates[kept] < skip_below[kept - 1] * gates[0])) ++kept;
  float all = 0;
  float left = 0;
#pragma unroll 1
  for (int k = 0; k < task.top_k; ++k) {
    all += gates[k];
    if (k < kept) left += gates[k];
  }
#pragma unroll 1
  for (int k = 0; k < task.top_k; ++k) gates[k] = k < kept ? gates[k] * (all / left) : 0.0f;
  return kept;
}

// The rows of the largest keys, of equal ones the first, in order. One warp's, each lane of which looks after every
// 32nd row.
inline __device__ __noinline__ void choose_rows(const RouteTask& task, Choice& choice) {
  const int lane = threadIdx.x % 32;
  uint32_t best = 0;
  int row = 0;
  const auto find_best = [&] {
    best = 0;
#pragma unroll 1
    for (int i = lane; i < task.rows; i += 32) {
      const uint32_t key = choice.keys[i];
      if (key > best) row = i;
      best = max(best, key);
    }
  };
  find_best();
#pragma unroll 1
  for (int k = 0; k < task.top_k; ++k) {
    const uint32_t most = __reduce_max_sync(~0u, best);
    const auto chosen = static_cast<int>(__reduce_min_sync(~0u, best == most ? static_cast<unsigned>(row) : ~0u));
    if (chosen % 32 != lane) continue;
    choice.rows[k] = chosen;
    choice.keys[chosen] = 0;
    find_best();
  }
  __syncwarp();
}

// Finds the rows and gates of a token's experts, the likeliest first, and how many of them are to be used. `bias` and
// `skip_below` are a task's, but not read from it: they may differ by layer.
template <class Sync>
__device__ __forceinline__ void choose_experts(const RouteTask& task, const float* bias, const float* skip_below,
                                               const float* logits, Choice& choice, int threads, const Sync& sync) {
  constexpr int kAhead = 4;
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  // Every warp finds what the scores are scaled by.
  float ahead[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int i = lane + 32 * j;
    ahead[j] = i < task.rows ? __ldcg(logits + i) : -INFINITY;
  }
  const float own = thread < task.rows ? __ldcg(logits + thread) : 0.0f;
  float most = 0;
  float scale = 1;
  if (!task.sigmoid) {
    most = fmaxf(fmaxf(ahead[0], ahead[1]), fmaxf(ahead[2], ahead[3]));
#pragma unroll 1
    for (int i = lane + 32 * kAhead; i < task.rows; i += 32) most = fmaxf(most, __ldcg(logits + i));
    most = warp_max(most);
    float total = 0;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) total += expf(ahead[j] - most);
#pragma unroll 1
    for (int i = lane + 32 * kAhead; i < task.rows; i += 32) total += expf(__ldcg(logits + i) - most);
    scale = 1.0f / warp_sum(total);
  }
#pragma unroll 1
  for (int i = thread; i < task.rows; i += threads) {
    const float x = i == thread ? own : __ldcg(logits + i);
    const float score = task.sigmoid ? expf(fminf(x, 0.0f)) / (1.0f + expf(-fabsf(x))) : expf(x - most) * scale;
    choice.scores[i] = score;
    choice.keys[i] = ordered(bias != nullptr ? score + bias[i] : score);
  }
  sync();
  if (task.top_groups < task.groups) keep_groups(task, bias, choice, sync, thread, threads);
  if (thread < 32) {
    choose_rows(task, choice);
    float total = 0;
#pragma unroll 1
    for (int k = lane; k < task.top_k; k += 32) total += choice.scores[choice.rows[k]];
    const float factor = task.renormalise ? task.scaling * __frcp_rn(warp_sum(total) + 1e-20f) : task.scaling;
#pragma unroll 1
    for (int k = lane; k < task.top_k; k += 32) choice.gates[k] = choice.scores[choice.rows[k]] * factor;
    __syncwarp();
    if (lane == 0) choice.kept = skip_below != nullptr ? skip_small(task, skip_below, choice.gates) : task.top_k;
  }
  sync();
}

}  // namespace espalier::cuda
