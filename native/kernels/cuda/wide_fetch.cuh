// The two warps of a product of many tokens that keep weights and x coming.
#pragma once

#include <cuda.h>

#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/wide_walk.cuh"

namespace espalier::cuda {

// Eight lanes: each has a row tile.
template <class Tile>
__device__ void fetch_weights(const WideArgs& args, const WideRings& rings, uint32_t rank, int lane) {
  const uint64_t policy = args.token_blocks == 1 ? ptx::read_once_policy() : ptx::read_again_policy();
  WideWalk walk(args, rank);
  int col = walk.first_col;
  const auto tile_at = [&] {
    const int64_t row_tile = walk.expert * args.row_tiles + min(walk.row_tile + lane, args.row_tiles - 1);
    return row_tile * args.col_tiles + col;
  };
  typename Tile::Source ahead;
  if (walk.more()) ahead.seek(args, tile_at());
  WidePlace place;
  while (walk.more()) {
    const typename Tile::Source source = ahead;
    if (++col == walk.last_col) {
      walk.next();
      col = walk.first_col;
    }
    if (walk.more()) ahead.seek(args, tile_at());
    ptx::barrier_wait(rings.weights_empty + 8 * place.stage, place.parity ^ 1);
    const uint32_t full = rings.weights_full + 8 * place.stage;
    ptx::barrier_expect_more(full, source.bytes(args));
    source.copy(args, rings.weights + (place.stage * kWideRowTiles + lane) * args.stage_bytes, full, policy);
    ptx::barrier_arrive(full);
    place.next(args.stages);
  }
}

// One lane's: the block of 64 inputs `half` of a part of x, of the tokens from `row` on. Mates fetch a share each for
// all, but for items whose inputs they split.
template <int kTokens>
__device__ __forceinline__ void fetch_block(const WideArgs& args, const WideRings& rings, const CUtensorMap& x,
                                            const WideWalk& walk, int row, int mine, int half, int part,
                                            WidePlace& place) {
  ptx::barrier_wait(rings.x_empty + 8 * place.stage, place.parity ^ 1);
  const uint32_t full = rings.x_full + 8 * place.stage;
  ptx::barrier_expect(full, kWideXBytes<kTokens>);
  const uint32_t to = rings.x + place.stage * kWideXBytes<kTokens>;
  const int col = half * kWideInputs;
  if (args.mates == 1) {
    ptx::tensor_load(to, &x, col, part, row, full);
  } else if (walk.split == 1) {
    ptx::tensor_load_to(static_cast<uint16_t>((1u << args.mates) - 1), to + mine * kWideInputs * 2, &x, col, part,
                        row + mine, full);
  } else {
    const int share = kTokens / args.mates;
    for (int from = 0; from < kTokens; from += share) {
      ptx::tensor_load(to + from * kWideInputs * 2, &x, col, part, row + from, full);
    }
  }
  place.next(args.x_stages);
}

// One lane's.
template <int kTokens>
__device__ void fetch_x(const WideArgs& args, const WideRings& rings, const CUtensorMap& x, uint32_t rank) {
  const int mine = args.mates > 1 ? static_cast<int>(rank) * (kTokens / args.mates) : 0;
  WidePlace place;
  for (WideWalk walk(args, rank); walk.more(); walk.next()) {
    const int row = walk.group * args.tokens + walk.token * kTokens;
    for (int half = 2 * walk.first_col; half < 2 * walk.last_col; ++half) {
      for (int part = 0; part <= args.two_parts; ++part) {
        fetch_block<kTokens>(args, rings, x, walk, row, mine, half, part, place);
      }
    }
  }
}

}  // namespace espalier::cuda
