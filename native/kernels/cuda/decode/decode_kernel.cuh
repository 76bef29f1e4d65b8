// The decode kernel. Every block has one multiprocessor to itself, and its own copy of the residual stream, to which
// all add the same; products are shared out by row tiles, attention by keys, the router by rows. Between stages a block
// reads what all have found.
#pragma once

#include "kernels/cuda/decode/attend.cuh"
#include "kernels/cuda/decode/grid_barrier.cuh"
#include "kernels/cuda/decode/rows.cuh"
#include "kernels/cuda/decode/tile_stream.cuh"
#include "kernels/cuda/prefetch.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/routing_choice.cuh"

namespace espalier::cuda {

// Where a warp's sums of 16 rows lie: two buffers, so that one can be read while the next is written.
using DecodeSums = float[2][kDecodeWarps][kTileHeight];

struct RouterRoom {
  Choice choice;
  int16_t experts[kMostExperts];  // of the router's rows
  alignas(16) float x[];          // [hidden]
};

// The computing warps of a block, and what they do. All of them call each function. T: of the KV cache.
template <class AttentionTile, class ExpertTile, class T>
class Decoder {
 public:
  __device__ Decoder(const DecodeTask& task, const SharedMemory& shared, DecodeContext& context, DecodeSums& sums)
      : task_(task),
        shared_(shared),
        context_(context),
        sums_(sums),
        warp_(threadIdx.x / 32),
        tiles_(context, shared.ring(task, warp_), task.room.ring),
        grid_(task.arrived, task.heads.kv_heads) {}

  __device__ void run() {
    ChunkLoads<T> keys(task_, context_);
    for (int i = 0; i < task_.layers; ++i) {
      const DecodeLayer& layer = context_.layers[i % 2];
      add_and_norm(task_,
                   {shared_.residual, i > 0 ? task_.down : nullptr, nullptr, layer.attention_norm, shared_.x, nullptr});
      // On their way while the row's own are computed; not before the call, which would wait for them.
      keys.load_keys(task_, layer);
      keys.load_values(task_, layer);
      multiply<AttentionTile>(kQkv);
      grid_.arrive();
      if (i + 1 < task_.layers) load_layer(task_, context_, i + 1);
      attend(layer, keys);
      load_x(shared_.x, task_.mixed, 1, task_.products[kOutput].col_tiles);
      multiply<AttentionTile>(kOutput);
      grid_.arrive();
      if (i + 1 < task_.layers) prefetch(context_.layers[(i + 1) % 2]);
      route(layer);
      // The experts of this layer, and what comes before those of the next.
      open(min((i + 1) * kDecodeProducts + kGateUp, task_.layers * kDecodeProducts));
      multiply<ExpertTile>(kGateUp);
      grid_.arrive();
      grid_.wait();
      load_x(shared_.x, task_.gated, context_.kept, task_.products[kDown].col_tiles);
      multiply<ExpertTile>(kDown);
      grid_.arrive();
      grid_.wait();
    }
    if (blockIdx.x == 0) {
      for (int i = threadIdx.x; i < task_.hidden; i += kDecodeThreads) {
        task_.residual[i] = shared_.residual[i] + __ldcg(task_.down + i);
      }
    }
    grid_.finish();
  }

 private:
  // The tiles of the products before this one are known.
  __device__ void open(int product) {
    if (threadIdx.x == 0) {
      ptx::store_release(ptx::shared_address(&context_.open), uint2{static_cast<uint32_t>(product), 0});
    }
  }

  __device__ void attend(const DecodeLayer& layer, ChunkLoads<T>& keys) {
    AttendRoom& room = *reinterpret_cast<AttendRoom*>(shared_.scratch);
    grid_.wait();
    if (keys.any()) {
      attend_keys(task_, context_, layer, keys, room);
      grid_.arrive_at(keys.kv_head);
    }
    if (keys.share.each > 1) keys.begin(task_, context_);
    // The blocks of a KV head merge its query heads; they wait for each other only.
    attended_ += keys.share.splits;
    const int group = task_.heads.heads / task_.heads.kv_heads;
    const int blocks = gridDim.x / task_.heads.kv_heads;
    for (int h = keys.split < blocks ? keys.split : group; h < group; h += blocks) {
      if (h == keys.split) grid_.wait_at(keys.kv_head, attended_);
      merge_partials(task_, keys.share.splits, keys.kv_head * group + h, &room.weights[0][0], &room.sums[0][0]);
    }
    grid_.arrive();
    grid_.wait();
  }

  // Logits of the router by all blocks, then the choice, which every block makes for itself.
  __device__ void route(const DecodeLayer& layer) {
    __shared__ float scratch[32];
    constexpr int kMine = kMostExperts / kDecodeThreads;
    RouterRoom& room = *reinterpret_cast<RouterRoom*>(shared_.scratch);
    int experts[kMine];
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const int row = static_cast<int>(threadIdx.x) + j * kDecodeThreads;
      experts[j] = row < task_.routing.rows ? __ldg(layer.expert_of_row + row) : 0;
    }
    grid_.wait();
    add_and_norm(task_,
                 {shared_.residual, task_.output, layer.output_bias, layer.feed_forward_norm, shared_.x, room.x});
    for (int row = blockIdx.x; row < task_.routing.rows; row += gridDim.x) {
      float sum = task_.router_is_bf16 ? router_product<__nv_bfloat16>(layer, row, room.x)
                                       : router_product<float>(layer, row, room.x);
      sum = worker_sum(sum, scratch);
      if (threadIdx.x == 0) task_.logits[row] = sum;
      sync_workers();
    }
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      room.experts[threadIdx.x + j * kDecodeThreads] = static_cast<int16_t>(experts[j]);
    }
    grid_.arrive();
    grid_.wait();
    choose_experts(task_.routing, layer.correction_bias, layer.skip_below, task_.logits, room.choice, kDecodeThreads,
                   [] { sync_workers(); });
    for (int k = threadIdx.x; k < room.choice.kept; k += kDecodeThreads) {
      context_.experts[k] = room.experts[room.choice.rows[k]];
      context_.gates[k] = room.choice.gates[k];
    }
    if (threadIdx.x == 0) context_.kept = room.choice.kept;
    sync_workers();
  }
  // A thread's part of it.
  template <class W>
  __device__ float router_product(const DecodeLayer& layer, int row, const float* x) const {
    const W* weights = static_cast<const W*>(layer.router) + static_cast<int64_t>(row) * task_.hidden;
    float sum = 0;
    for (int i = threadIdx.x; i < task_.hidden / 4; i += kDecodeThreads) {
      const float4 w = load_four(weights + 4 * i);
      const float4 v = reinterpret_cast<const float4*>(x)[i];
      sum += w.x * v.x + w.y * v.y + w.z * v.z + w.w * v.w;
    }
    return sum;
  }

  // The block's rows of a product with x.
  template <class Tile>
  __device__ void multiply(int kind) {
    const int lane = threadIdx.x % 32;
    const int t = lane % 4;
    const DecodeProduct& product = task_.products[kind];
    const DecodeShare share(product, kind, context_.kept, warp_);
    const int groups = kind == kDown ? context_.kept : 1;
    // Lanes 4g … 4g + 3 load column g of B. Columns beyond the parts give sums that are not used.
    const int part = task_.parts == 2 ? lane / 4 % 2 : 0;
    const uint32_t x = ptx::shared_address(shared_.x + part * x_stride(groups * product.col_tiles));
    const ProductArgs none{};
    const typename Tile::Lane of_lane(lane);
    int buffer = 0;
    int adder = 0;
    int item = share.item;
    int column = share.part;
    float acc[1][4] = {};
    while (item < share.items) {
      if (column < share.columns) {
        uint4 operand[4][1];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint4 loaded = ptx::load_shared_16(x + (column * kTileWidth + Tile::input(i, t)) * 2);
          operand[i][0] = Tile::arrange(loaded, t);
        }
        const uint32_t at = tiles_.next(product.tile_bytes);
        Tile tile;
        tile.begin(none, at, of_lane);
        tile.template multiply<0>(acc, operand[0]);
        tile.template multiply<1>(acc, operand[1]);
        tile.template multiply<2>(acc, operand[2]);
        tile.template multiply<3>(acc, operand[3]);
        Tile::finish();
        tiles_.release(product.tile_bytes);
        column += product.split;
        if (column < share.columns) continue;
      }
      add_up(kind, product.split, adder, item, sums_[buffer][warp_], acc[0]);
      // The warps of a team take turns, so that none is behind the others.
      adder = adder + 1 < product.split ? adder + 1 : 0;
      // With two buffers, the next meeting keeps writers of this one away until it has been read.
      buffer ^= 1;
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[0][i] = 0;
      column = share.part;
      item += share.stride;
    }
    sync_workers();
  }

  // The sums of a team's warps for an item, and where they go.
  __device__ void add_up(int kind, int split, int adder, int item, float* mine, const float (&acc)[4]) {
    const int lane = threadIdx.x % 32;
    if (lane % 4 == 0) {
      mine[lane / 4] = task_.parts == 2 ? acc[0] + acc[1] : acc[0];
      mine[lane / 4 + 8] = task_.parts == 2 ? acc[2] + acc[3] : acc[2];
    }
    if (split == 1) {
      __syncwarp();
    } else {
      ptx::named_barrier(1 + warp_ / split, split * 32);
    }
    if (warp_ % split != adder || lane >= kTileHeight) return;
    const float* const first = mine - adder * kTileHeight;
    float sum = 0;
#pragma unroll 4
    for (int p = 0; p < split; ++p) sum += first[p * kTileHeight + lane];
    if (kind == kGateUp) {
      store_gated(item, lane, sum);
      return;
    }
    float* const to = kind == kQkv ? task_.qkv : kind == kOutput ? task_.output : task_.down;
    const int row = item * kTileHeight + lane;
    if (row < task_.products[kind].rows) to[row] = sum;
  }
  // silu(gate) ⊙ up of a tile of eight gates and eight ups, times the expert's gate. Half a warp's.
  __device__ void store_gated(int item, int row, float sum) const {
    constexpr int kHalf = kTileHeight / 2;
    const float up = __shfl_down_sync(0xffffu, sum, kHalf);
    if (row >= kHalf) return;
    const int row_tiles = task_.products[kGateUp].row_tiles;
    const int group = item / row_tiles;
    const float gated = sum / (1.0f + expf(-sum)) * up;
    store_parts(task_.gated, group, (item - group * row_tiles) * kHalf + row, gated * context_.gates[group]);
  }

  // Brings into the L2 cache what the next layer would have to wait for: what no ring fetches ahead.
  __device__ void prefetch(const DecodeLayer& next) const {
    // Not by the thread that waits for other blocks.
    if (threadIdx.x != kDecodeThreads - 32) return;
    prefetch_beyond_rings(next);
    prefetch_share(next.router, static_cast<int64_t>(task_.routing.rows) * task_.hidden *
                                    (task_.router_is_bf16 ? sizeof(__nv_bfloat16) : sizeof(float)));
    prefetch_small(0, next.attention_norm, task_.hidden);
    prefetch_small(1, next.feed_forward_norm, task_.hidden);
    prefetch_small(2, next.qkv_bias, task_.products[kQkv].rows);
    prefetch_small(3, next.output_bias, task_.hidden);
    prefetch_small(4, next.q_norm, task_.heads.head_dim);
    prefetch_small(5, next.k_norm, task_.heads.head_dim);
    prefetch_small(6, reinterpret_cast<const float*>(next.expert_of_row), task_.routing.rows);
  }
  // The tiles of Wq, Wk and Wv that the rings have no room for: the last ones.
  __device__ void prefetch_beyond_rings(const DecodeLayer& next) const {
    const DecodeProduct& product = task_.products[kQkv];
    const int in_rings = task_.room.ring / product.tile_bytes * kDecodeWarps * static_cast<int>(gridDim.x);
    const int tiles = product.row_tiles * product.col_tiles;
    if (tiles <= in_rings) return;
    prefetch_share(next.tiles[kQkv] + static_cast<int64_t>(in_rings) * product.tile_bytes,
                   static_cast<int64_t>(tiles - in_rings) * product.tile_bytes);
  }
  // One block's.
  __device__ static void prefetch_small(int block, const float* from, int count) {
    if (static_cast<int>(blockIdx.x) != block || from == nullptr) return;
    ptx::prefetch_to_cache(from, count * static_cast<int>(sizeof(float)) / 16 * 16);
  }

  const DecodeTask& task_;
  const SharedMemory& shared_;
  DecodeContext& context_;
  DecodeSums& sums_;
  const int warp_;
  TileReader tiles_;
  GridBarrier grid_;
  unsigned attended_ = 0;  // arrivals at each KV head
};

template <class AttentionTile, class ExpertTile, class T>
__global__ void __launch_bounds__(kDecodeBlock, 1) decode_kernel(const __grid_constant__ DecodeTask task) {
  extern __shared__ __align__(128) uint8_t dynamic[];
  __shared__ DecodeContext context;
  __shared__ DecodeSums sums;
  const SharedMemory shared(task, dynamic);
  begin_decode(task, shared, context);
  if (threadIdx.x < kDecodeThreads) {
    Decoder<AttentionTile, ExpertTile, T>(task, shared, context, sums).run();
  } else if (threadIdx.x < kDecodeThreads + kDecodeWarps) {
    const int warp = threadIdx.x - kDecodeThreads;
    TileFetcher(task, context, warp, shared.ring(task, warp)).run();
  }
}

using DecodeKernel = void (*)(DecodeTask);

template <class AttentionTile, class ExpertTile>
DecodeKernel choose_decode(bool kv_is_bf16) {
  return kv_is_bf16 ? &decode_kernel<AttentionTile, ExpertTile, __nv_bfloat16>
                    : &decode_kernel<AttentionTile, ExpertTile, float>;
}

// The kernels of each layout of experts, beside dense attention of the same kind of values.
DecodeKernel dense_decode(bool kv_is_bf16);
DecodeKernel two_four_decode(bool kv_is_bf16);
DecodeKernel balanced_decode(bool kv_is_bf16);
DecodeKernel dense_int8_decode(bool kv_is_bf16);
DecodeKernel two_four_int8_decode(bool kv_is_bf16);

}  // namespace espalier::cuda
