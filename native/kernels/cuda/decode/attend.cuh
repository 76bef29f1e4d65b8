// Attention of one row in the decode kernel. A block has a KV head and some chunks of its keys; those of before lie in
// the cache, and are on their way before the row's own queries, key and value are known.
#pragma once

#include "kernels/cuda/decode/chunk_loads.cuh"
#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/reduce.cuh"

namespace espalier::cuda {

// The most query heads of a KV head.
inline constexpr int kDecodeHeads = 8;

// Room in shared memory.
struct AttendRoom {
  float queries[kDecodeHeads][kDecodeDim];
  float key[kDecodeDim];
  float value[kDecodeDim];
  union {
    float scores[kDecodeWarps][kDecodeHeads][kAttendChunk];
    float sums[kDecodeHeads][kDecodeThreads];
  };
  float weights[kDecodeHeads][kAttendChunk];
  // What the sums of the chunks before are multiplied by.
  float before[kDecodeHeads];
};

// A head of the row's queries, keys or values: bias, norm, clamp, rotation. A warp's.
__device__ __forceinline__ void prepare_head(const DecodeTask& task, const DecodeLayer& layer, int head,
                                             const DecodeContext& context, float factor, float* out) {
  const HeadShape& shape = task.heads;
  const int lane = threadIdx.x % 32;
  const int half = shape.head_dim / 2;
  const bool is_query = head < shape.heads;
  const bool is_value = head >= shape.heads + shape.kv_heads;
  const int begin = head * shape.head_dim;
  const auto load = [&](int i) { return __ldcg(task.qkv + i) + (layer.qkv_bias != nullptr ? layer.qkv_bias[i] : 0); };
  constexpr int kPairs = kDecodeDim / 64;
  float low[kPairs] = {};
  float high[kPairs] = {};
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + 32 * j;
    if (i >= half) continue;
    low[j] = load(begin + i);
    high[j] = load(begin + half + i);
  }
  const float* norm = is_query ? layer.q_norm : is_value ? nullptr : layer.k_norm;
  float low_norm[kPairs] = {};
  float high_norm[kPairs] = {};
  if (norm != nullptr) {
    const bool whole = is_query ? layer.q_norm_whole : layer.k_norm_whole;
    int count = shape.head_dim;
    float squares = 0;
    if (whole) {
      const int first = is_query ? 0 : shape.heads * shape.head_dim;
      count *= is_query ? shape.heads : shape.kv_heads;
      norm += begin - first;
#pragma unroll 1
      for (int i = lane; i < count; i += 32) squares += load(first + i) * load(first + i);
    } else {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) squares += low[j] * low[j] + high[j] * high[j];
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = lane + 32 * j;
      if (i >= half) continue;
      low_norm[j] = norm[i];
      high_norm[j] = norm[half + i];
    }
    const float scale = __frsqrt_rn(__fdividef(warp_sum(squares), static_cast<float>(count)) + task.epsilon);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = lane + 32 * j;
      if (i >= half) continue;
      low[j] *= scale * low_norm[j];
      high[j] *= scale * high_norm[j];
    }
  }
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + 32 * j;
    if (i >= half) continue;
    if (layer.clip > 0) {
      low[j] = fminf(fmaxf(low[j], -layer.clip), layer.clip);
      high[j] = fminf(fmaxf(high[j], -layer.clip), layer.clip);
    }
    const float cosine = is_value ? 1.0f : context.cosines[i];
    const float sine = is_value ? 0.0f : context.sines[i];
    out[i] = factor * (low[j] * cosine - high[j] * sine);
    out[half + i] = factor * (high[j] * cosine + low[j] * sine);
  }
}

// What the block's keys give, into `partials`, when the row's queries, key and value can be read.
template <class T>
__device__ __forceinline__ void attend_keys(const DecodeTask& task, const DecodeContext& context,
                                            const DecodeLayer& layer, ChunkLoads<T>& loads, AttendRoom& room) {
  constexpr int kMine = ChunkLoads<T>::kMine;
  const HeadShape& shape = task.heads;
  const int dim = shape.head_dim;
  const int group = shape.heads / shape.kv_heads;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const AttendShare& share = loads.share;
  const int kv_head = loads.kv_head;
  const int split = loads.split;
  const int elements = loads.elements;
  const int first_element = loads.first_element;
  const int values_each = loads.values_each;
  const int first_value = loads.first_value;
  const bool owns_last = split == share.splits - 1;
  // The first warps have a query head each, two more the new key and value, where they are this block's.
  const bool is_query = warp < group;
  const bool is_value = warp > kDecodeHeads;
  if (is_query || (owns_last && warp >= kDecodeHeads && warp < kDecodeHeads + 2)) {
    const int head = kv_head + shape.heads + (is_value ? shape.kv_heads : 0);
    float* out = is_query ? room.queries[warp] : is_value ? room.value : room.key;
    prepare_head(task, layer, is_query ? kv_head * group + warp : head, context, is_query ? layer.scale : 1.0f, out);
    __syncwarp();
    if (!is_query) {
      const int64_t base = loads.block_at(task, context, share.position);
      const int place = share.position % kKvTokens;
      T* to = static_cast<T*>(is_value ? layer.values : layer.keys) + base + (is_value ? place * dim : place);
      const int step = is_value ? 1 : kKvTokens;
#pragma unroll 1
      for (int i = lane; i < dim; i += 32) {
        const T rounded = static_cast<T>(out[i]);
        to[i * step] = rounded;
        out[i] = static_cast<float>(rounded);
      }
    }
  }
  sync_workers();

  float sums[kDecodeHeads] = {};
  // Of a warp's head, so far: the largest score, and the sum of the weights.
  float most = -INFINITY;
  float total = 0;
  for (;;) {
    const int own_place = share.position - loads.chunk * kAttendChunk;
    const int key = loads.chunk * kAttendChunk + lane;
    const bool visible = key >= share.first_key && key <= share.position;
    if (lane == own_place) {
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        if (j < elements && first_element + j < dim) loads.keys[j] = room.key[first_element + j];
      }
    }
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      if (j < values_each && first_value + j == own_place) loads.values[j] = room.value[loads.value_element];
    }
#pragma unroll
    for (int h = 0; h < kDecodeHeads; ++h) {
      if (h >= group) break;
      float score = 0;
#pragma unroll
      for (int j = 0; j < kMine; j += 4) {
        if (j >= elements || first_element + j >= dim) continue;
        const float4 query = *reinterpret_cast<const float4*>(&room.queries[h][first_element + j]);
        score += query.x * loads.keys[j] + query.y * loads.keys[j + 1] + query.z * loads.keys[j + 2] +
                 query.w * loads.keys[j + 3];
      }
      room.scores[warp][h][lane] = score;
    }
    const bool is_last = loads.chunk == loads.last_chunk;
    if (!is_last) {
      ++loads.chunk;
      loads.find(task, context);
      loads.load_keys(task, layer);
    }
    sync_workers();
    if (warp < group) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) all += room.scores[w][warp][lane];
      const float together = fmaxf(most, warp_max(visible ? all : -INFINITY));
      const float weight = visible ? expf(all - together) : 0.0f;
      const float before = expf(most - together);
      total = total * before + warp_sum(weight);
      most = together;
      room.weights[warp][lane] = weight;
      if (lane == 0) room.before[warp] = before;
    }
    sync_workers();
#pragma unroll
    for (int h = 0; h < kDecodeHeads; ++h) {
      if (h >= group) break;
      sums[h] *= room.before[h];
#pragma unroll
      for (int j = 0; j < kMine; j += 4) {
        if (j >= values_each || first_value + j >= kAttendChunk) continue;
        const float4 weight = *reinterpret_cast<const float4*>(&room.weights[h][first_value + j]);
        sums[h] += weight.x * loads.values[j] + weight.y * loads.values[j + 1] + weight.z * loads.values[j + 2] +
                   weight.w * loads.values[j + 3];
      }
    }
    if (is_last) break;
    loads.load_values(task, layer);
  }

  // Sums of the threads that have the same element, then of all.
#pragma unroll
  for (int h = 0; h < kDecodeHeads; ++h) {
    if (h < group) room.sums[h][threadIdx.x] = sums[h];
  }
  sync_workers();
  const int stride = dim + 2;
  const auto partial_of = [&](int h) {
    return task.partials + (static_cast<int64_t>(kv_head * group + h) * share.splits + split) * stride;
  };
  const int shares = (kAttendChunk + values_each - 1) / values_each;
#pragma unroll 1
  for (int i = threadIdx.x; i < group * dim; i += kDecodeThreads) {
    const int h = i / dim;
    const int d = i - h * dim;
    float sum = 0;
#pragma unroll 4
    for (int s = 0; s < shares; ++s) sum += room.sums[h][s * dim + d];
    partial_of(h)[d] = sum;
  }
  if (warp < group && lane == 0) {
    float* partial = partial_of(warp) + dim;
    partial[0] = most;
    partial[1] = total;
  }
}

// Merges what blocks found for a head, into `mixed`.
__device__ __forceinline__ void merge_partials(const DecodeTask& task, int splits, int head, float* factors,
                                               float* sums) {
  constexpr int kAhead = 12;
  const int dim = task.heads.head_dim;
  const int lane = threadIdx.x % 32;
  const int stride = dim + 2;
  const float* partials = task.partials + static_cast<int64_t>(head) * splits * stride;
  const int groups = kDecodeThreads / dim;
  const int mine = threadIdx.x / dim;
  const int d = threadIdx.x % dim;
  float ahead[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int s = mine + j * groups;
    ahead[j] = mine < groups && s < splits ? __ldcg(partials + s * stride + d) : 0.0f;
  }
  float most = -INFINITY;
#pragma unroll 1
  for (int s = lane; s < splits; s += 32) most = fmaxf(most, __ldcg(partials + s * stride + dim));
  most = warp_max(most);
  float total = 0;
#pragma unroll 1
  for (int s = lane; s < splits; s += 32) {
    const float factor = expf(__ldcg(partials + s * stride + dim) - most);
    total += factor * __ldcg(partials + s * stride + dim + 1);
    if (threadIdx.x < 32) factors[s] = factor;
  }
  total = warp_sum(total);
  sync_workers();
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int s = mine + j * groups;
    if (mine < groups && s < splits) sum += factors[s] * ahead[j];
  }
  if (mine < groups) {
#pragma unroll 1
    for (int s = mine + kAhead * groups; s < splits; s += groups) sum += factors[s] * __ldcg(partials + s * stride + d);
  }
  sums[threadIdx.x] = sum;
  sync_workers();
  if (threadIdx.x < dim) {
    float all = 0;
#pragma unroll 2
    for (int g = 0; g < groups; ++g) all += sums[g * dim + threadIdx.x];
    store_parts(task.mixed, 0, head * dim + static_cast<int>(threadIdx.x), all / total);
  }
  sync_workers();
}

}  // namespace espalier::cuda
