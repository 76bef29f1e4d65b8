// What a block does ahead for the next layer, beside what its rings fetch.
#pragma once

#include "kernels/cuda/decode/context.cuh"
#include "kernels/cuda/prefetch.cuh"

namespace espalier::cuda {

// The tiles of Wq, Wk and Wv that the rings have no room for: the last ones.
__device__ __forceinline__ void prefetch_beyond_rings(const DecodeTask& task, const DecodeLayer& next) {
  const DecodeProduct& product = task.products[kQkv];
  const int in_rings = task.room.ring / product.tile_bytes * kDecodeWarps * static_cast<int>(gridDim.x);
  const int tiles = product.row_tiles * product.col_tiles;
  if (tiles <= in_rings) return;
  prefetch_share(next.tiles[kQkv] + static_cast<int64_t>(in_rings) * product.tile_bytes,
                 static_cast<int64_t>(tiles - in_rings) * product.tile_bytes);
}

// One block's.
__device__ __forceinline__ void prefetch_small(int block, const float* from, int count) {
  if (static_cast<int>(blockIdx.x) != block || from == nullptr) return;
  ptx::prefetch_to_cache(from, count * static_cast<int>(sizeof(float)) / 16 * 16);
}

// Brings into the L2 cache what the next layer would have to wait for: what no ring fetches ahead. A thread's.
__device__ __forceinline__ void prefetch_layer(const DecodeTask& task, const DecodeLayer& next) {
  prefetch_beyond_rings(task, next);
  prefetch_share(next.router, static_cast<int64_t>(task.routing.rows) * task.hidden *
                                  (task.router_is_bf16 ? sizeof(__nv_bfloat16) : sizeof(float)));
  prefetch_small(0, next.attention_norm, task.hidden);
  prefetch_small(1, next.feed_forward_norm, task.hidden);
  prefetch_small(2, next.qkv_bias, task.products[kQkv].rows);
  prefetch_small(3, next.output_bias, task.hidden);
  prefetch_small(4, next.q_norm, task.heads.head_dim);
  prefetch_small(5, next.k_norm, task.heads.head_dim);
  prefetch_small(6, reinterpret_cast<const float*>(next.expert_of_row), task.routing.rows);
}

}  // namespace espalier::cuda
