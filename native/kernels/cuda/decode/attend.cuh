// Attention of one row in the decode kernel. A block has a KV head and some chunks of its keys; those of before lie in
// the cache, and are on their way before the row's own queries, key and value are known.
#pragma once

#include "kernels/cuda/decode/chunk_loads.cuh"
#include "kernels/cuda/decode/merge.cuh"
#include "kernels/cuda/decode/words.cuh"
#include "kernels/cuda/reduce.cuh"

namespace espalier::cuda {

// The most query heads of a KV head.
inline constexpr int kDecodeHeads = 8;
static_assert(kDecodeHeads <= kDecodeWarps, "a warp weighs the keys of a head");

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

// The sum of squares of `count` words from `first` on, multiples of 4, with their biases (or null). A warp's.
inline __device__ __noinline__ float squares_of(const uint32_t* words, const float* bias, int first, int count,
                                                uint32_t mark) {
  constexpr int kAhead = 4;
  const int lane = threadIdx.x % 32;
  float squares = 0;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kAhead * 128) {
    uint4 found[kAhead];
    const auto place = [&](int j) { return begin + j * 128 + 4 * lane; };
    await_words(mark, found, [&](int j) { return place(j) < count ? words + first + place(j) : nullptr; });
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (place(j) >= count) continue;
      const float4 value = value_of(found[j]);
      const float4 added = bias != nullptr ? *reinterpret_cast<const float4*>(bias + first + place(j)) : float4{};
      squares += (value.x + added.x) * (value.x + added.x) + (value.y + added.y) * (value.y + added.y) +
                 (value.z + added.z) * (value.z + added.z) + (value.w + added.w) * (value.w + added.w);
    }
  }
  return warp_sum(squares);
}

// A head of the row's queries, keys or values, which are words: bias, norm, clamp, rotation. A warp's.
__device__ __forceinline__ void prepare_head(const DecodeTask& task, const DecodeLayer& layer, int head,
                                             const DecodeContext& context, const Turn& turn, float factor, float* out) {
  const HeadShape& shape = task.heads;
  const int lane = threadIdx.x % 32;
  const int half = shape.head_dim / 2;
  const bool is_query = head < shape.heads;
  const bool is_value = head >= shape.heads + shape.kv_heads;
  const int begin = head * shape.head_dim;
  const uint32_t* words = words_of(task, task.words.qkv, turn);
  constexpr int kPairs = kDecodeDim / 64;
  uint32_t found[2 * kPairs];
  await_words(turn.mark, found, [&](int j) {
    const int i = lane + 32 * (j % kPairs);
    return i < half ? words + begin + j / kPairs * half + i : nullptr;
  });
  const auto element = [&](int j, int i) {
    return value_of(found[j]) + (layer.qkv_bias != nullptr ? layer.qkv_bias[begin + i] : 0);
  };
  float low[kPairs] = {};
  float high[kPairs] = {};
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int i = lane + 32 * j;
    if (i >= half) continue;
    low[j] = element(j, i);
    high[j] = element(kPairs + j, half + i);
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
      squares = squares_of(words, layer.qkv_bias, first, count, turn.mark);
    } else {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) squares += low[j] * low[j] + high[j] * high[j];
      squares = warp_sum(squares);
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = lane + 32 * j;
      if (i >= half) continue;
      low_norm[j] = norm[i];
      high_norm[j] = norm[half + i];
    }
    const float scale = __frsqrt_rn(__fdividef(squares, static_cast<float>(count)) + task.epsilon);
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

// What the block's keys give, as partials.
template <class T>
__device__ __forceinline__ void attend_keys(const DecodeTask& task, const DecodeContext& context,
                                            const DecodeLayer& layer, const Turn& turn, ChunkLoads<T>& loads,
                                            AttendRoom& room) {
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
  // The query heads, and the new key and value where they are this block's: a warp each.
  const int jobs = group + (owns_last ? 2 : 0);
#pragma unroll 1
  for (int job = warp; job < jobs; job += kDecodeWarps) {
    const bool is_query = job < group;
    const bool is_value = job == group + 1;
    const int head = kv_head + shape.heads + (is_value ? shape.kv_heads : 0);
    float* out = is_query ? room.queries[job] : is_value ? room.value : room.key;
    prepare_head(task, layer, is_query ? kv_head * group + job : head, context, turn, is_query ? layer.scale : 1.0f,
                 out);
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
  const Partials partials(task, share, turn);
  const int shares = (kAttendChunk + values_each - 1) / values_each;
#pragma unroll 1
  for (int i = threadIdx.x; i < group * dim; i += kDecodeThreads) {
    const int h = i / dim;
    const int d = i - h * dim;
    float sum = 0;
#pragma unroll 4
    for (int s = 0; s < shares; ++s) sum += room.sums[h][s * dim + d];
    store_word(partials.at(kv_head * group + h, split) + d, sum, turn.mark);
  }
  if (warp < group && lane == 0) {
    uint32_t* const partial = partials.at(kv_head * group + warp, split) + dim;
    store_word(partial, most, turn.mark);
    store_word(partial + 1, total, turn.mark);
  }
}

}  // namespace espalier::cuda
