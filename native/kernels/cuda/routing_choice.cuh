// The choice of a token's experts from the logits of the router's rows: the work of a warp, each lane of which looks
// after every 32nd row.
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
inline __device__ __noinline__ void keep_groups(const RouteTask& task, const float* bias, Choice& choice) {
  const int lane = threadIdx.x % 32;
  __syncwarp();
  const int size = task.rows / task.groups;
  for (int g = lane; g < task.groups; g += 32) {
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
  __syncwarp();
  for (int i = lane; i < task.rows; i += 32) {
    if (rank_of(choice.of_groups, task.groups, i / size) >= task.top_groups) choice.keys[i] = kLeftOut;
  }
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

// The best of a lane's rows that are still to be chosen, in order.
class BestRows {
 public:
  __device__ __forceinline__ BestRows(const uint32_t* keys, int rows) : keys_(keys), rows_(rows) { find(); }

  __device__ uint32_t key() const { return best_[0]; }
  __device__ int row() const { return row_[0]; }
  // The first has been chosen, its key is 0.
  __device__ __forceinline__ void pop() {
#pragma unroll
    for (int j = 0; j + 1 < kHeld; ++j) {
      best_[j] = best_[j + 1];
      row_[j] = row_[j + 1];
    }
    best_[kHeld - 1] = 0;
    if (best_[0] == 0 && rows_ > 32 * kHeld) find();
  }

 private:
  static constexpr int kHeld = 4;

  __device__ __forceinline__ void find() {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) best_[j] = 0;
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < rows_; i += 32) {
      uint32_t key = keys_[i];
      int row = i;
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const bool before = key > best_[j];
        const uint32_t other = best_[j];
        const int other_row = row_[j];
        best_[j] = before ? key : other;
        row_[j] = before ? row : other_row;
        key = before ? other : key;
        row = before ? other_row : row;
      }
    }
  }

  const uint32_t* keys_;
  const int rows_;
  uint32_t best_[kHeld];
  int row_[kHeld] = {};
};

// The rows of the largest keys, of equal ones the first, in order.
__device__ __forceinline__ void choose_rows(int rows, int top_k, Choice& choice) {
  BestRows best(choice.keys, rows);
#pragma unroll 1
  for (int k = 0; k < top_k; ++k) {
    const uint32_t most = __reduce_max_sync(~0u, best.key());
    const auto row = static_cast<unsigned>(best.row());
    const auto chosen = static_cast<int>(__reduce_min_sync(~0u, best.key() == most ? row : ~0u));
    if (static_cast<unsigned>(chosen) % 32 != threadIdx.x % 32) continue;
    choice.rows[k] = chosen;
    choice.keys[chosen] = 0;
    best.pop();
  }
  __syncwarp();
}

// Finds the rows and gates of a token's experts, the likeliest first, and how many of them are to be used. `logit`
// gives that of a row, one of the lane's. `bias` and `skip_below` are a task's, but not read from it: they may differ
// by layer.
template <class Logit>
__device__ __forceinline__ void choose_experts(const RouteTask& task, const float* bias, const float* skip_below,
                                               const Logit& logit, Choice& choice) {
  constexpr int kAhead = 4;
  const int lane = threadIdx.x % 32;
  const int rows = task.rows;
  const bool sigmoid = task.sigmoid;
  // Calls visit(row, logit) for the lane's rows, and for some beyond the last, which get −∞; several do not wait for
  // each other.
  const auto each_row = [&](const auto& visit) {
#pragma unroll 1
    for (int first = lane; first < rows; first += 32 * kAhead) {
      float x[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) x[j] = first + 32 * j < rows ? logit(first + 32 * j) : -INFINITY;
#pragma unroll
      for (int j = 0; j < kAhead; ++j) visit(first + 32 * j, x[j]);
    }
  };
  float most = -INFINITY;
  if (!sigmoid) {
    each_row([&](int, float x) { most = fmaxf(most, x); });
    most = warp_max(most);
  }
  const auto score_of = [&](float x) {
    return sigmoid ? expf(fminf(x, 0.0f)) / (1.0f + expf(-fabsf(x))) : expf(x - most);
  };
  float scale = 1;
  if (!sigmoid) {
    float all = 0;
    each_row([&](int, float x) { all += score_of(x); });
    scale = 1.0f / warp_sum(all);
  }
  each_row([&](int i, float x) {
    const float score = score_of(x) * scale;
    if (i >= rows) return;
    choice.scores[i] = score;
    choice.keys[i] = ordered(bias != nullptr ? score + bias[i] : score);
  });
  if (task.top_groups < task.groups) keep_groups(task, bias, choice);
  choose_rows(rows, task.top_k, choice);
  float total = 0;
#pragma unroll 1
  for (int k = lane; k < task.top_k; k += 32) total += choice.scores[choice.rows[k]];
  const float factor = task.renormalise ? task.scaling * __frcp_rn(warp_sum(total) + 1e-20f) : task.scaling;
#pragma unroll 1
  for (int k = lane; k < task.top_k; k += 32) choice.gates[k] = choice.scores[choice.rows[k]] * factor;
  __syncwarp();
  if (lane == 0) choice.kept = skip_below != nullptr ? skip_small(task, skip_below, choice.gates) : task.top_k;
  __syncwarp();
}

}  // namespace espalier::cuda
