// What the products of all layouts share: how warps find their tiles, keep them coming, and add up what they found.
//
// A block of kWarps warps is cut into groups of `split`. A group takes 16 · kRowTiles rows of one expert at a time (an
// item), and its warps every split-th tile of these rows. The copies of the next item run while this one is added up.
// Sums are made in the same order whatever the grid is.
//
// A layout is a struct Tile:
//   Lane                               what a lane knows whatever the tile is, made of its number
//   begin(args, stage, lane)           reads from the tile in shared memory what it needs first
//   multiply<kQuarter>(acc, b)         products of a quarter of the 128 inputs
//   input(quarter, t)                  the first of the 8 inputs whose x lane 4g + t loads for the quarter,
//   arrange(b)                         and from these to the B operand's registers: see LoadedInputs
//   Source                             where tiles lie, see FixedSource
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/prefetch.cuh"
#include "kernels/cuda/product_inputs.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/launch.cuh"
#include "kernels/cuda/ptx/memory.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {

// Floats between the 16 sums of one token and those of the next: with 20, lanes store to different banks.
inline constexpr int kSumStride = 20;

inline constexpr int kSumBuffers = 2;
// Bytes of partial sums of a block.
template <int kBlocks, int kWarps>
constexpr int kSumBytes = kSumBuffers* kWarps* kBlocks * 8 * kSumStride * 4;

// The tiles that a warp fetches, in order. All lanes have the same.
template <class Tile, int kRowTiles>
class Fetcher {
 public:
  __device__ Fetcher(const ProductArgs& args, int item, int part)
      : args_(args),
        item_(item),
        part_(part),
        columns_(args.by_split.divide(max(args.col_tiles - part + args.split - 1, 0))) {
    if (columns_ > 0) find_rows();
  }
  __device__ bool more() const { return left_ > 0; }
  // Copies the tiles of the current place to `stage`, and goes on. Called by all lanes, for only then the compiler
  // knows that the copies are the warp's, not a lane's.
  __device__ void fetch(uint32_t stage, uint32_t barrier) {
    uint32_t bytes = 0;
#pragma unroll
    for (int q = 0; q < kRowTiles; ++q) bytes += source_[q].bytes(args_);
    if (ptx::elect_one()) {
      ptx::barrier_expect(barrier, bytes);
#pragma unroll
      for (int q = 0; q < kRowTiles; ++q) {
        source_[q].copy(args_, stage + q * args_.stage_bytes, barrier, ptx::read_once_policy());
      }
    }
    if (--left_ > 0) {
#pragma unroll
      for (int q = 0; q < kRowTiles; ++q) source_[q].advance(args_, args_.split);
      return;
    }
    item_ += args_.item_step;
    find_rows();
  }

 private:
  // Goes on to the next item that has an expert.
  __device__ void find_rows() {
    for (; item_ < args_.items; item_ += args_.item_step) {
      const int group = args_.by_row_blocks.divide(item_);
      const int expert = args_.experts != nullptr ? args_.experts[group] : args_.one_matrix ? 0 : group;
      if (expert < 0) continue;
      const int row_tile = (item_ - group * args_.row_blocks) * kRowTiles;
      const int64_t tile = (static_cast<int64_t>(expert) * args_.row_tiles + row_tile) * args_.col_tiles + part_;
      source_[0].seek(args_, tile);
      // Beyond the last row, the last tile again: what comes of it is not stored.
      static_assert(kRowTiles <= 2);
      if constexpr (kRowTiles == 2) {
        source_[1].seek(args_, row_tile + 1 < args_.row_tiles ? tile + args_.col_tiles : tile);
      }
      left_ = columns_;
      return;
    }
  }

  const ProductArgs& args_;
  typename Tile::Source source_[kRowTiles];
  int left_ = 0;  // columns of the item
  int item_;
  const int part_;
  const int columns_;
};

// The next item from this one on that has an expert.
__device__ __forceinline__ int find_item(const ProductArgs& args, int item) {
  if (args.experts == nullptr) return item;
  while (item < args.items && args.experts[args.by_row_blocks.divide(item)] < 0) item += args.item_step;
  return item;
}

// kResident: blocks that registers leave room for on a multiprocessor.
template <class Tile, class Inputs, int kRowTiles, int kWarps, int kResident>
__global__ void __launch_bounds__(kWarps * 32, kResident) product_kernel(const __grid_constant__ ProductArgs args) {
  constexpr int kBlocks = Inputs::kBlocks;
  extern __shared__ __align__(256) uint8_t shared[];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int team = args.by_split.divide(warp);
  const int part = warp - team * args.split;
  const int g = lane / 4;
  const int t = lane % 4;

  const int input_bytes = Inputs::room_bytes(args.tokens << args.two_parts);
  const int ring_bytes = args.stages * args.stage_bytes * kRowTiles;
  uint8_t* const behind_inputs = shared + kWarps * input_bytes;
  const uint32_t ring = ptx::keep(ptx::shared_address(behind_inputs) + warp * ring_bytes);
  float* const sums = reinterpret_cast<float*>(behind_inputs + kWarps * ring_bytes);
  const uint32_t barriers = ptx::keep(ptx::shared_address(behind_inputs) + kWarps * ring_bytes +
                                      kSumBytes<kBlocks, kWarps> + warp * args.stages * 8);
  const int first_item = blockIdx.x * args.block_step + team * args.team_step;
  if (!args.early) ptx::wait_for_previous();
  Fetcher<Tile, kRowTiles> fetcher(args, first_item, part);
  if (lane == 0) {
    // Unrolled, it has initialisations behind uniform predicates, which racecheck takes for made.
#pragma unroll 1
    for (int i = 0; i < args.stages; ++i) ptx::barrier_init(barriers + 8 * i, 1);
    ptx::barrier_init_fence();
  }
  __syncwarp();
  for (int i = 0; i < args.stages && fetcher.more(); ++i) {
    fetcher.fetch(ring + i * args.stage_bytes * kRowTiles, barriers + 8 * i);
  }
  // What is not the previous kernel's to write is read before that ends.
  int item = find_item(args, first_item);
  if (args.early) ptx::wait_for_previous();
  ptx::allow_next();

  const typename Tile::Lane of_lane(lane);
  Inputs inputs(args, ptx::shared_address(shared) + warp * input_bytes, lane);
  int stage = 0;
  uint32_t parity = 0;
  int sum_buffer = 0;
  for (; item < args.items; item = find_item(args, item + args.item_step)) {
    const int group = args.by_row_blocks.divide(item);
    const int first_row = (item - group * args.row_blocks) * kRowTiles * kTileHeight;
    inputs.begin(group, part);
    float acc[kRowTiles][kBlocks][4] = {};
    for (int col = part; col < args.col_tiles; col += args.split) {
      inputs.load(col, col + args.split);
      ptx::barrier_wait(barriers + 8 * stage, parity);
      const uint32_t base = ring + stage * args.stage_bytes * kRowTiles;
      Tile tile[kRowTiles];
#pragma unroll
      for (int q = 0; q < kRowTiles; ++q) tile[q].begin(args, base + q * args.stage_bytes, of_lane);
      const auto quarter = [&]<int kQuarter>() {
        uint4 operand[kBlocks];
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) operand[b] = inputs.template operand<kQuarter>(b);
#pragma unroll
        for (int q = 0; q < kRowTiles; ++q) tile[q].template multiply<kQuarter>(acc[q], operand);
        inputs.template multiplied<kQuarter>();
      };
      quarter.template operator()<0>();
      quarter.template operator()<1>();
      quarter.template operator()<2>();
      quarter.template operator()<3>();
      __syncwarp();
      inputs.release(col + args.split);
      if (fetcher.more()) fetcher.fetch(base, barriers + 8 * stage);
      if (++stage == args.stages) {
        stage = 0;
        parity ^= 1;
      }
    }

    // Sums of a team, 16 rows at a time.
#pragma unroll
    for (int q = 0; q < kRowTiles; ++q) {
      constexpr int kPartial = kBlocks * 8 * kSumStride;
      float* const buffer = sums + (sum_buffer * kWarps + team * args.split) * kPartial;
      float* const mine = buffer + part * kPartial;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int i = 0; i < 4; ++i) mine[(b * 8 + 2 * t + i % 2) * kSumStride + g + i / 2 * 8] = acc[q][b][i];
      }
      const auto meet = [&] {
        if (args.split == 1) {
          __syncwarp();
        } else {
          ptx::named_barrier(1 + team, args.split * 32);
        }
      };
      meet();
      const auto sum_of = [&](int token, int row) {
        const float* from = buffer + (token << args.two_parts) * kSumStride + row;
        float sum = 0;
        for (int p = 0; p < args.split; ++p) sum += from[p * kPartial];
        if (args.two_parts != 0) {
          for (int p = 0; p < args.split; ++p) sum += from[p * kPartial + kSumStride];
        }
        return sum;
      };
      const int tile_row = first_row + q * kTileHeight;
      if (args.output == OutputType::kGated) {
        constexpr int kHalf = kTileHeight / 2;
        const PartRows out{static_cast<uint16_t*>(args.y), 1 + args.two_parts, args.rows / 2};
        for (int i = part * 32 + lane; i < args.tokens * kTileHeight; i += args.split * 32) {
          const int token = i / kTileHeight;
          const float sum = sum_of(token, i % kTileHeight);
          // The last tokens may leave half a warp without work.
          const float up = __shfl_down_sync(args.tokens * kTileHeight - i + lane < 32 ? 0xffffu : ~0u, sum, kHalf);
          if (i % kTileHeight < kHalf && tile_row < args.rows) {
            const int row = tile_row / 2 + i % kHalf;
            store_parts(out, group * args.tokens + token, row, sum / (1.0f + expf(-sum)) * up);
          }
        }
      } else {
        for (int i = part * 32 + lane; i < args.tokens * kTileHeight; i += args.split * 32) {
          const int token = i / kTileHeight;
          const float sum = sum_of(token, i % kTileHeight);
          const int row = tile_row + i % kTileHeight;
          if (row >= args.rows) continue;
          const int64_t at = static_cast<int64_t>(group * args.tokens + token) * args.rows + row;
          if (args.output == OutputType::kF32) {
            static_cast<float*>(args.y)[at] = sum;
          } else {
            static_cast<__nv_bfloat16*>(args.y)[at] = __float2bfloat16_rn(sum);
          }
        }
      }
      // With two buffers, the next meeting keeps writers of this one away until it has been read.
      sum_buffer ^= 1;
    }
  }
  // While the kernels after this one wait for each other, memory has time for what comes then.
  if (threadIdx.x == 0 && args.next != nullptr) prefetch_share(args.next, args.next_bytes);
}

// Tiles that expand into all their values have expand<kQuarter, kHalf>(a): the A operand of 16 of a quarter's inputs,
// as four words that hold rows g and g + 8 of two inputs, then of the next two.
template <int kQuarter, class Tile, int kBlocks>
__device__ __forceinline__ void multiply_expanded(Tile& tile, float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
  uint32_t a[4];
  tile.template expand<kQuarter, 0>(a);
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) ptx::mma_m16n8k16(acc[i], a, b[i].x, b[i].y);
  tile.template expand<kQuarter, 1>(a);
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) ptx::mma_m16n8k16(acc[i], a, b[i].z, b[i].w);
}

// Where a tile comes from: seek(), and advance() by some tiles, ask for what copy() will need when the tile's turn
// comes. This is for tiles of one size, of which nothing has to be asked.
template <class Size>
struct FixedSource {
  const uint8_t* from;
  __device__ static uint32_t bytes(const ProductArgs& args) { return Size::bytes(args); }
  __device__ void seek(const ProductArgs& args, int64_t tile) { from = args.tiles + tile * Size::bytes(args); }
  __device__ void advance(const ProductArgs& args, int tiles) {
    from += tiles * static_cast<int64_t>(Size::bytes(args));
  }
  __device__ void copy(const ProductArgs& args, uint32_t to, uint32_t barrier, uint64_t policy) const {
    ptx::bulk_load(to, from, Size::bytes(args), barrier, policy);
  }
};

// A kernel and what a block of it is made of.
struct ProductKernel {
  void (*function)(ProductArgs) = nullptr;
  int warps = 0;
  int row_tiles = 0;
  int sum_bytes = 0;
  int input_bytes = 0;  // for so many rows of x as it was chosen for
  int resident = 1;     // blocks that a multiprocessor has room for
  // Tiles that a warp has under way where nothing else is asked for: more do not make it faster, and what they leave of
  // the multiprocessor's memory caches x.
  int stages = 2;
};

// `rows` of x.
template <class Tile, class Inputs, int kRowTiles, int kWarps, int kResident = 1>
ProductKernel make_kernel_of(int rows) {
  return {&product_kernel<Tile, Inputs, kRowTiles, kWarps, kResident>,
          kWarps,
          kRowTiles,
          kSumBytes<Inputs::kBlocks, kWarps>,
          kWarps * Inputs::room_bytes(rows),
          kResident};
}
template <class Tile, int kBlocks, int kRowTiles, int kWarps, int kResident = 1>
ProductKernel make_kernel() {
  return make_kernel_of<Tile, LoadedInputs<Tile, kBlocks>, kRowTiles, kWarps, kResident>(0);
}

// The kernels of each layout for so many tokens. A brief launch is one in which a warp has hardly more to do than to
// begin and to end.
ProductKernel dense_kernel(int tokens);
ProductKernel two_four_kernel(int tokens);
ProductKernel balanced_kernel(int tokens);
ProductKernel bitmap_kernel(int tokens, bool is_brief);
ProductKernel dense_int8_kernel(int tokens);
ProductKernel two_four_int8_kernel(int tokens, bool is_brief);

}  // namespace espalier::cuda
