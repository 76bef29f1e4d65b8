// What the blocks of a KV head find in their keys, and how it is put together.
#pragma once

#include "kernels/cuda/decode/chunk_loads.cuh"
#include "kernels/cuda/decode/words.cuh"

namespace espalier::cuda {

// What the blocks of a KV head find for a query head: the sums of a head's elements, the largest score, the sum of the
// weights; `stride` words, a multiple of 4, from one block to the next.
struct Partials {
  uint32_t* words;
  int stride;
  int of_head;
  uint32_t mark;

  __device__ Partials(const DecodeTask& task, const AttendShare& share, const Turn& turn)
      : words(words_of(task, task.words.partials, turn)),
        stride(task.heads.head_dim + 4),
        of_head(share.blocks * stride),
        mark(turn.mark) {}
  __device__ uint32_t* at(int head, int split) const { return words + head * of_head + split * stride; }
};

// Nothing, as every word is written in every layer: the partials of a block without keys.
__device__ __forceinline__ void attend_none(const DecodeTask& task, const Partials& partials, int kv_head, int split) {
  const int group = task.heads.heads / task.heads.kv_heads;
#pragma unroll 1
  for (int h = 0; h < group; ++h) {
    uint32_t* const to = partials.at(kv_head * group + h, split);
    for (int i = threadIdx.x; i < partials.stride; i += kDecodeThreads) store_word(to + i, 0, partials.mark);
  }
}

// What some blocks found together: as Partials, for four elements.
struct Merged {
  float4 sum;
  float most;
  float total;
};

// Room in shared memory for merging.
struct MergeRoom {
  Merged of_threads[kDecodeThreads];
};

// Merges what blocks found for a head, into words of `mixed`. A thread merges four elements of some blocks.
__device__ __forceinline__ void merge_partials(const DecodeTask& task, const Partials& partials, const Turn& turn,
                                               int splits, int head, MergeRoom& room) {
  constexpr int kAhead = 5;
  const int dim = task.heads.head_dim;
  const int thread = static_cast<int>(threadIdx.x);
  const int fours = dim / 4;
  const int groups = kDecodeThreads / fours;
  const int mine = thread / fours;
  const int at = thread % fours * 4;
  const uint32_t* const of_head = partials.at(head, 0);
  Merged merged{{}, -INFINITY, 0};
#pragma unroll 1
  for (int base = 0; base < splits; base += kAhead * groups) {
    const int first = base + mine;
    uint2 weights[kAhead];
    uint4 words[kAhead];
    const uint32_t* of_splits[kAhead];
    const uint32_t* weights_of[kAhead];
    const auto exists = [&](int j) { return mine < groups && first + j * groups < splits; };
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t* const of_split = of_head + (first + j * groups) * partials.stride;
      of_splits[j] = exists(j) ? of_split + at : nullptr;
      weights_of[j] = exists(j) ? of_split + dim : nullptr;
    }
    ask_words(turn.mark, of_splits, words);
    ask_words(turn.mark, weights_of, weights);
    await_asked(turn.mark, of_splits, words);
    await_asked(turn.mark, weights_of, weights);
    float most = merged.most;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) most = fmaxf(most, exists(j) ? value_of(weights[j].x) : -INFINITY);
    const float before = merged.total > 0 ? expf(merged.most - most) : 0.0f;
    float4 sum = {before * merged.sum.x, before * merged.sum.y, before * merged.sum.z, before * merged.sum.w};
    float total = before * merged.total;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const float factor = exists(j) ? expf(value_of(weights[j].x) - most) : 0.0f;
      const float4 value = value_of(words[j]);
      sum = {sum.x + factor * value.x, sum.y + factor * value.y, sum.z + factor * value.z, sum.w + factor * value.w};
      total += factor * value_of(weights[j].y);
    }
    merged = {sum, most, total};
  }
  room.of_threads[thread] = merged;
  sync_workers();
  if (thread < fours) {
    const int used = min(groups, splits);
    float most = -INFINITY;
#pragma unroll 4
    for (int g = 0; g < used; ++g) most = fmaxf(most, room.of_threads[g * fours + thread].most);
    float4 sum{};
    float total = 0;
#pragma unroll 4
    for (int g = 0; g < used; ++g) {
      const Merged& part = room.of_threads[g * fours + thread];
      const float factor = expf(part.most - most);
      sum = {sum.x + factor * part.sum.x, sum.y + factor * part.sum.y, sum.z + factor * part.sum.z,
             sum.w + factor * part.sum.w};
      total += factor * part.total;
    }
    uint32_t* const to = words_of(task, task.words.mixed, turn) + head * dim + at;
    store_word_of_parts(to, sum.x / total, task.parts, turn.mark);
    store_word_of_parts(to + 1, sum.y / total, task.parts, turn.mark);
    store_word_of_parts(to + 2, sum.z / total, task.parts, turn.mark);
    store_word_of_parts(to + 3, sum.w / total, task.parts, turn.mark);
  }
  sync_workers();
}

}  // namespace espalier::cuda
