// What the computing warps of the decode kernel do. Every block has one multiprocessor to itself, and its own copy of
// the residual stream, to which all add the same; products are shared out by row tiles, attention by keys, the router
// by rows. Between stages a block reads the words of all.
#pragma once

#include "kernels/cuda/decode/attend.cuh"
#include "kernels/cuda/decode/merge.cuh"
#include "kernels/cuda/decode/next_layer.cuh"
#include "kernels/cuda/decode/router.cuh"
#include "kernels/cuda/decode/rows.cuh"
#include "kernels/cuda/decode/tile_stream.cuh"
#include "kernels/cuda/decode/words.cuh"
#include "kernels/cuda/product.cuh"

namespace espalier::cuda {

// Where a warp's sums of 16 rows lie: two buffers, so that one can be read while the next is written.
using DecodeSums = float[2][kDecodeWarps][kTileHeight];

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
        turn_(context.layers_done),
        tiles_(context, shared.ring(task, warp_), task.room.ring) {}

  __device__ void run() {
    ChunkLoads<T> keys(task_, context_);
#pragma unroll 1
    for (int i = 0; i < task_.layers; ++i) {
      const DecodeLayer& layer = context_.layers[i % 2];
      // Attention and feed-forward have the same form: a norm, a product, something between, a product. The code of
      // what they have in common stands once.
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        add_and_norm(task_, norm_of(i, half == 0, layer));
        if (half == 0) {
          turn_ = Turn(context_.layers_done + i);
        } else {
          route(i, layer);
          // The experts of this layer, and what comes before those of the next.
          open(min((i + 1) * kDecodeProducts + kGateUp, task_.layers * kDecodeProducts));
          skip_gated();
        }
#pragma unroll 1
        for (int kind = 2 * half; kind < 2 * half + 2; ++kind) {
          if (kind % 2 == 1) load_rows(kind);
          if (half == 0) {
            multiply<AttentionTile>(kind);
          } else {
            multiply<ExpertTile>(kind);
          }
          if (kind == kQkv) attend(layer, keys);
        }
      }
    }
    if (blockIdx.x == 0) end();
  }

 private:
  // The tiles of the products before this one are known.
  __device__ void open(int product) {
    if (threadIdx.x == 0) {
      ptx::store_release(ptx::shared_address(&context_.open), uint2{static_cast<uint32_t>(product), 0});
    }
  }

  __device__ uint32_t* words(uint32_t* first) const { return words_of(task_, first, turn_); }
  __device__ int gated_width() const { return task_.products[kGateUp].row_tiles * (kTileHeight / 2); }

  // Of layer i: before attention, which adds what the layer before has found, or before the experts.
  __device__ DecodeNorm norm_of(int i, bool attention, const DecodeLayer& layer) {
    RouterRoom& room = *reinterpret_cast<RouterRoom*>(shared_.scratch);
    DecodeNorm norm;
    norm.residual = shared_.residual;
    norm.source = attention ? i > 0 ? words(task_.words.down) : nullptr : words(task_.words.output);
    norm.mark = turn_.mark;
    norm.bias = attention ? nullptr : layer.output_bias;
    norm.weight = attention ? layer.attention_norm : layer.feed_forward_norm;
    norm.x = shared_.x;
    norm.floats = attention ? nullptr : room.x;
    return norm;
  }

  // The input of a layer's second products.
  __device__ void load_rows(int kind) {
    const WordRows rows =
        kind == kOutput ? WordRows{words(task_.words.mixed), turn_.mark, 1, task_.heads.heads * task_.heads.head_dim}
                        : WordRows{words(task_.words.gated), turn_.mark, context_.kept, gated_width()};
    load_x(task_, shared_.x, rows, task_.products[kind]);
  }

  __device__ void attend(const DecodeLayer& layer, ChunkLoads<T>& keys) {
    AttendRoom& room = *reinterpret_cast<AttendRoom*>(shared_.scratch);
    const Partials partials(task_, keys.share, turn_);
    const int blocks = keys.share.blocks;
    // On their way while other blocks' rows of the product are waited for.
    keys.load_keys(task_, layer);
    keys.load_values(task_, layer);
    if (keys.any()) {
      attend_keys(task_, context_, layer, turn_, keys, room);
    } else if (keys.split < blocks) {
      attend_none(task_, partials, keys.kv_head, keys.split);
    }
    if (keys.share.each > 1) keys.begin(task_, context_);
    // The blocks of a KV head merge its query heads.
    MergeRoom& merging = *reinterpret_cast<MergeRoom*>(shared_.scratch);
    sync_workers();
    const int group = task_.heads.heads / task_.heads.kv_heads;
    for (int h = keys.split < blocks ? keys.split : group; h < group; h += blocks) {
      merge_partials(task_, partials, turn_, keys.share.splits, keys.kv_head * group + h, merging);
    }
  }

  // Logits of the router by all blocks, then the choice, which every block makes for itself: a warp, while others see
  // to the next layer.
  __device__ void route(int i, const DecodeLayer& layer) {
    const Router router(task_, context_, turn_, *reinterpret_cast<RouterRoom*>(shared_.scratch));
    // The block has read all words of this layer so far, and of those before. Loads that have come cannot be overtaken
    // by this store, nor can it by the stores of whoever has read it.
    if (threadIdx.x == kDecodeThreads - 1) store_word(words(task_.words.blocks) + blockIdx.x, 0, turn_.mark);
    router.find_logits(layer);
    if (warp_ == 1) router.choose(layer);
    if (warp_ == 2) router.await_blocks();
    if (warp_ == 3 && i + 1 < task_.layers) {
      load_layer(task_, context_, i + 1, threadIdx.x % 32, 32);
      __syncwarp();
      if (threadIdx.x % 32 == 0) prefetch_layer(task_, context_.layers[(i + 1) % 2]);
    }
    sync_workers();
  }
  // Rows of experts that are left out, as every word is written in every layer.
  __device__ void skip_gated() const {
    const int first = context_.kept * gated_width();
    const int count = task_.routing.top_k * gated_width();
#pragma unroll 1
    for (int i = first + static_cast<int>(blockIdx.x * kDecodeThreads + threadIdx.x); i < count;
         i += static_cast<int>(gridDim.x) * kDecodeThreads) {
      store_word(words(task_.words.gated) + i, 0, turn_.mark);
    }
  }

  // The block's rows of a product with x.
  template <class Tile>
  __device__ void multiply(int kind) {
    const int lane = threadIdx.x % 32;
    const DecodeProduct& product = task_.products[kind];
    const DecodeShare share(product, kind, context_.kept, warp_);
    const int groups = kind == kDown ? context_.kept : 1;
    // Lanes 4g … 4g + 3 load column g of B. Columns beyond the parts give sums that are not used.
    const int part = task_.parts == 2 ? lane / 4 % 2 : 0;
    const uint32_t x = ptx::shared_address(shared_.x + part * x_stride(groups * product.col_tiles));
    const int split = product.split;
    const int bytes = product.tile_bytes;
    int buffer = 0;
    int adder = 0;
    int column = share.part;
    float acc[2][1][4] = {};
#pragma unroll 1
    for (int item = share.item; item < share.items;) {
      // Two tiles at a time: what they are loaded by does not wait for each other.
      if (column + split < share.columns) {
        multiply_tiles<Tile, 2>(acc, x, column, split, bytes);
        column += 2 * split;
        if (column < share.columns) continue;
      } else if (column < share.columns) {
        multiply_tiles<Tile, 1>(acc, x, column, split, bytes);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[0][0][i] += acc[1][0][i];
      add_up(kind, split, adder, item, sums_[buffer][warp_], acc[0][0]);
      // The warps of a team take turns, so that none is behind the others.
      adder = adder + 1 < split ? adder + 1 : 0;
      // With two buffers, the next meeting keeps writers of this one away until it has been read.
      buffer ^= 1;
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[0][0][i] = acc[1][0][i] = 0;
      column = share.part;
      item += share.stride;
    }
    sync_workers();
  }

  // The next tiles, of columns that are `split` apart, with x, into two chains of sums.
  template <class Tile, int kTiles>
  __device__ __forceinline__ void multiply_tiles(float (&acc)[2][1][4], uint32_t x, int column, int split, int bytes) {
    const int t = threadIdx.x % 4;
    const ProductArgs none{};
    const typename Tile::Lane of_lane(threadIdx.x % 32);
    uint32_t at[kTiles];
    uint4 operand[kTiles][4][1];
    Tile tiles[kTiles];
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
      at[u] = tiles_.next(bytes);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        operand[u][i][0] = ptx::load_shared_16(x + ((column + u * split) * kTileWidth + Tile::input(i, t)) * 2);
      }
    }
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
#pragma unroll
      for (int i = 0; i < 4; ++i) operand[u][i][0] = Tile::arrange(operand[u][i][0], t);
      tiles[u].begin(none, at[u], of_lane);
    }
#pragma unroll
    for (int u = 0; u < kTiles; ++u) {
      tiles[u].template multiply<0>(acc[u], operand[u][0]);
      tiles[u].template multiply<1>(acc[1 - u], operand[u][1]);
      tiles[u].template multiply<2>(acc[u], operand[u][2]);
      tiles[u].template multiply<3>(acc[1 - u], operand[u][3]);
    }
    tiles_.release();
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
    uint32_t* const to = kind == kQkv ? task_.words.qkv : kind == kOutput ? task_.words.output : task_.words.down;
    store_word(words(to) + item * kTileHeight + lane, sum, turn_.mark);
  }
  // silu(gate) ⊙ up of a tile of eight gates and eight ups, times the expert's gate. Half a warp's.
  __device__ void store_gated(int item, int row, float sum) const {
    constexpr int kHalf = kTileHeight / 2;
    const float up = __shfl_down_sync(0xffffu, sum, kHalf);
    if (row >= kHalf) return;
    const float gated = sum / (1.0f + expf(-sum)) * up;
    const int group = item / task_.products[kGateUp].row_tiles;
    store_word_of_parts(words(task_.words.gated) + item * kHalf + row, gated * context_.gates[group], task_.parts,
                        turn_.mark);
  }

  // The hidden states, and how many layers have used the words. All blocks have begun: they have come to the router.
  __device__ void end() {
    for (int i = threadIdx.x; i < task_.hidden; i += kDecodeThreads) {
      uint32_t word[1];
      await_words(turn_.mark, word, [&](int) { return words(task_.words.down) + i; });
      task_.residual[i] = shared_.residual[i] + value_of(word[0]);
    }
    if (threadIdx.x == 0) *task_.layers_done = context_.layers_done + task_.layers;
  }

  const DecodeTask& task_;
  const SharedMemory& shared_;
  DecodeContext& context_;
  DecodeSums& sums_;
  const int warp_;
  Turn turn_;
  TileReader tiles_;
};

}  // namespace espalier::cuda
