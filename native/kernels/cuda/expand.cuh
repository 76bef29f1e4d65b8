// Weights expanded from their tiles to row-major bf16 rows, as cuBLASLt wants them, at the speed of memory: every warp
// keeps its next tiles coming by bulk copies while it expands one.
#pragma once

#include "kernels/cuda/product.cuh"
#include "kernels/cuda/transpose.cuh"

namespace espalier::cuda {

struct ExpandArgs : ProductArgs {
  uint16_t* out;  // [16 · row tiles][128 · col_tiles], of the tiles below
  int64_t first_tile;
  int64_t tile_count;  // whole rows of tiles
};

// A lane has 16 bytes of each of four quarters of a row. Afterwards four neighbouring lanes have 64 consecutive bytes
// of each, however the layout shares inputs out: lane t those of the inputs 32 · quarter + 8t and on.
template <class Tile>
__device__ __forceinline__ void line_up(uint32_t (&quarters)[4][4], int t) {
  if constexpr (Tile::input(0, 1) != 8) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const uint4 moved = transpose({quarters[0][word], quarters[1][word], quarters[2][word], quarters[3][word]}, t);
      quarters[0][word] = moved.x;
      quarters[1][word] = moved.y;
      quarters[2][word] = moved.z;
      quarters[3][word] = moved.w;
    }
  }
}

// put(i, values, below): lane 4g + t's eight inputs from 32i + 8t on, of row g and of row g + 8.
template <class Tile, class Put>
__device__ __forceinline__ void expand_tile(Tile& tile, int lane, const Put& put) {
  uint32_t upper[4][4];
  uint32_t lower[4][4];
  const auto quarter = [&]<int kQuarter>() {
    static_assert(Tile::input(kQuarter, 1) == kQuarter * 32 + 8 || Tile::input(kQuarter, 1) == 32 + kQuarter * 8);
    uint32_t first[4];
    uint32_t second[4];
    tile.template expand<kQuarter, 0>(first);
    tile.template expand<kQuarter, 1>(second);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      upper[kQuarter][i] = first[2 * i];
      upper[kQuarter][2 + i] = second[2 * i];
      lower[kQuarter][i] = first[2 * i + 1];
      lower[kQuarter][2 + i] = second[2 * i + 1];
    }
  };
  quarter.template operator()<0>();
  quarter.template operator()<1>();
  quarter.template operator()<2>();
  quarter.template operator()<3>();
  line_up<Tile>(upper, lane % 4);
  line_up<Tile>(lower, lane % 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    put(i, uint4{upper[i][0], upper[i][1], upper[i][2], upper[i][3]},
        uint4{lower[i][0], lower[i][1], lower[i][2], lower[i][3]});
  }
}

// Writes a tile to its place in a matrix of 128 · col_tiles columns.
template <class Tile>
__device__ __forceinline__ void put_rows(Tile& tile, int lane, uint16_t* matrix, int col_tiles, int64_t row_tile,
                                         int64_t col) {
  const int64_t stride = static_cast<int64_t>(col_tiles) * kTileWidth;
  uint16_t* const place = matrix + (row_tile * kTileHeight + lane / 4) * stride + col * kTileWidth + lane % 4 * 8;
  auto* const to = reinterpret_cast<uint4*>(place);
  expand_tile(tile, lane, [&](int i, uint4 upper, uint4 lower) {
    to[4 * i] = upper;
    to[4 * i + stride] = lower;  // eight rows on
  });
}

template <class Tile, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 1) expand_kernel(const __grid_constant__ ExpandArgs args) {
  extern __shared__ __align__(256) uint8_t shared[];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const uint32_t ring = ptx::shared_address(shared) + warp * args.stages * args.stage_bytes;
  const uint32_t barriers = ptx::shared_address(shared) + args.stages * (kWarps * args.stage_bytes + warp * 8);
  if (lane == 0) {
    for (int i = 0; i < args.stages; ++i) ptx::barrier_init(barriers + 8 * i, 1);
    ptx::barrier_init_fence();
  }
  __syncwarp();

  const int stride = gridDim.x * kWarps;
  const uint64_t policy = ptx::read_once_policy();
  int64_t at = blockIdx.x * kWarps + warp;
  int64_t next = at;
  // Where the next one lies is asked for when the one before is fetched.
  typename Tile::Source ahead{};
  const auto fetch = [&](int to) {
    if (next >= args.tile_count) return;
    const typename Tile::Source source = ahead;
    next += stride;
    if (next < args.tile_count) ahead.seek(args, args.first_tile + next);
    const uint32_t full = barriers + 8 * to;
    ptx::barrier_expect(full, source.bytes(args));
    source.copy(args, ring + to * args.stage_bytes, full, policy);
  };
  if (lane == 0 && at < args.tile_count) {
    ahead.seek(args, args.first_tile + at);
    for (int i = 0; i < args.stages; ++i) fetch(i);
  }
  // What reads `out` may still run.
  ptx::wait_for_previous();
  ptx::allow_next();

  const typename Tile::Lane of_lane(lane);
  int stage = 0;
  uint32_t parity = 0;
  for (; at < args.tile_count; at += stride) {
    ptx::barrier_wait(barriers + 8 * stage, parity);
    Tile tile;
    tile.begin(args, ring + stage * args.stage_bytes, of_lane);
    const int64_t row_tile = at / args.col_tiles;
    const int64_t col = at - row_tile * args.col_tiles;
    put_rows(tile, lane, args.out, args.col_tiles, row_tile, col);
    __syncwarp();
    if (lane == 0) fetch(stage);
    if (++stage == args.stages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

struct ExpandKernel {
  void (*function)(ExpandArgs) = nullptr;
  int warps = 0;
};

template <class Tile, int kWarps>
ExpandKernel make_expand() {
  return {&expand_kernel<Tile, kWarps>, kWarps};
}

ExpandKernel balanced_expand();
ExpandKernel bitmap_expand();

}  // namespace espalier::cuda
