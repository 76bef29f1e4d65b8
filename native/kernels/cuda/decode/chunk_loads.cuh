// How the decode kernel's blocks share out the keys and values of a row, and how they load theirs.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/decode/context.cuh"

namespace espalier::cuda {

// How the chunks of the keys that a row sees are shared out: equal runs, for as many blocks as there are for a KV head.
struct AttendShare {
  int first_key;
  int position;
  int first_chunk;
  int chunks;
  int each;
  int splits;
  int blocks;  // of a KV head

  __device__ AttendShare(const DecodeTask& task, int at) : position(at) {
    first_key = task.window > 0 ? max(0, position + 1 - task.window) : 0;
    first_chunk = first_key / kAttendChunk;
    chunks = position / kAttendChunk + 1 - first_chunk;
    blocks = static_cast<int>(gridDim.x) / task.heads.kv_heads;
    each = (chunks + blocks - 1) / blocks;
    splits = (chunks + each - 1) / each;
  }
};

__device__ __forceinline__ float cached(const float* from) { return __ldcs(from); }
__device__ __forceinline__ float cached(const __nv_bfloat16* from) { return __bfloat162float(__ldcs(from)); }

// The block's keys and values of a layer, a chunk at a time: those of rows before, from the cache. A warp scores the
// keys of a chunk by some elements of the head, at most 16; a thread sums an element of some values, at most 16.
template <class T>
struct ChunkLoads {
  static constexpr int kMine = 16;
  AttendShare share;
  int kv_head;
  int split;
  int chunk;
  int last_chunk;
  int elements;
  int first_element;
  int values_each;
  int value_element;
  int first_value;
  // Where the thread's part of the chunk at hand lies in a layer's arrays.
  int64_t key_at;
  int64_t value_at;
  float keys[kMine];
  float values[kMine];

  __device__ __forceinline__ ChunkLoads(const DecodeTask& task, const DecodeContext& context)
      : share(task, context.position) {
    const int dim = task.heads.head_dim;
    const int thread = static_cast<int>(threadIdx.x);
    kv_head = blockIdx.x % task.heads.kv_heads;
    split = blockIdx.x / task.heads.kv_heads;
    last_chunk = min(share.chunks, (split + 1) * share.each) - 1 + share.first_chunk;
    elements = (dim + 4 * kDecodeWarps - 1) / (4 * kDecodeWarps) * 4;
    first_element = thread / 32 * elements;
    values_each = (kAttendChunk * dim + 4 * kDecodeThreads - 1) / (4 * kDecodeThreads) * 4;
    first_value = thread / dim * values_each;
    value_element = thread % dim;
    begin(task, context);
  }
  __device__ bool any() const { return split < share.splits; }
  // The first chunk is at hand.
  __device__ __forceinline__ void begin(const DecodeTask& task, const DecodeContext& context) {
    chunk = share.first_chunk + split * share.each;
    find(task, context);
  }
  __device__ __forceinline__ void find(const DecodeTask& task, const DecodeContext& context) {
    const int key = chunk * kAttendChunk + static_cast<int>(threadIdx.x % 32);
    key_at = key < share.position ? block_at(task, context, key) + first_element * kKvTokens + key % kKvTokens : 0;
    // The values of a thread are of one block of the cache: their places divide its size.
    const int value = chunk * kAttendChunk + first_value;
    value_at = value < share.position
                   ? block_at(task, context, value) + value % kKvTokens * task.heads.head_dim + value_element
                   : 0;
  }
  __device__ __forceinline__ int64_t block_at(const DecodeTask& task, const DecodeContext& context, int key) const {
    const HeadShape& shape = task.heads;
    return (static_cast<int64_t>(context.table[key / kKvTokens]) * shape.kv_heads + kv_head) *
           (shape.head_dim * kKvTokens);
  }
  __device__ __forceinline__ void load_keys(const DecodeTask& task, const DecodeLayer& layer) {
    const int key = chunk * kAttendChunk + static_cast<int>(threadIdx.x % 32);
    const bool seen = any() && key >= share.first_key && key < share.position;
    const T* from = static_cast<const T*>(layer.keys) + key_at;
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const bool used = seen && j < elements && first_element + j < task.heads.head_dim;
      keys[j] = used ? cached(from + j * kKvTokens) : 0.0f;
    }
  }
  __device__ __forceinline__ void load_values(const DecodeTask& task, const DecodeLayer& layer) {
    const int key = chunk * kAttendChunk + first_value;
    const int count = any() && first_value < kAttendChunk ? min(values_each, share.position - key) : 0;
    const T* from = static_cast<const T*>(layer.values) + value_at;
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      values[j] = j < count && key + j >= share.first_key ? cached(from + j * task.heads.head_dim) : 0.0f;
    }
  }
};
static_assert(kKvTokens % ChunkLoads<float>::kMine == 0);

}  // namespace espalier::cuda
