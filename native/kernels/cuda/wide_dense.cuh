// Dense weights in products of many tokens: the copy engine lays them out as rows in shared memory, where the tensor
// cores read them, so that no warp has to touch them. A stage is 64 inputs of 128 rows.
#pragma once

#include "kernels/cuda/wide.cuh"

namespace espalier::cuda {

inline constexpr int kBlockInputs = 32;
inline constexpr int kBlockBytes = kTileHeight * kBlockInputs * 2;
inline constexpr int kRowStageBytes = kWideRowTiles * kTileHeight * kWideInputs * 2;

// Weights in tiles, which are 1 KiB blocks of 16 rows by 32 inputs, row after row (tile_codec.h): a tensor of 32
// inputs, 16 rows, row tiles and blocks of inputs. A stage is two blocks of 128 rows of 64 bytes, swizzled.
struct TiledRows {
  __device__ static void fetch(const WideArgs& args, uint32_t to, int row_tile, int half, uint32_t full) {
    ptx::tensor_load(to, &args.tensor, 0, 0, row_tile, 2 * half, full);
  }
  // What wgmma takes for a warpgroup's 64 rows: 8 of them 512 bytes.
  __device__ static uint64_t describe(uint32_t stage, int warpgroup) {
    const uint32_t address = stage + warpgroup * kRowStageBytes / 4;
    return uint64_t{2} << 62 | uint64_t{512 / 16} << 32 | uint64_t{1} << 16 | (address & 0x3ffffu) >> 4;
  }
  // 16 inputs are 32 bytes of a row; the second 32 inputs are a block of their own.
  __device__ static constexpr int part(int k) { return k / 2 * (kRowStageBytes / 2 / 16) + k % 2 * 2; }
};

// A matrix of rows, as x is.
struct MatrixRows {
  __device__ static void fetch(const WideArgs& args, uint32_t to, int row_tile, int half, uint32_t full) {
    ptx::tensor_load(to, &args.tensor, half * kWideInputs, 0, row_tile * kTileHeight, full);
  }
  __device__ static uint64_t describe(uint32_t stage, int warpgroup) {
    return describe_x(stage + warpgroup * kRowStageBytes / 2);
  }
  __device__ static constexpr int part(int k) { return 2 * k; }
};

template <class Rows>
struct ByRows : WideFetches {
  static constexpr int kFetchLanes = 1;
  static constexpr int kFetchers = 1;
  static constexpr int kReleases = kWideConsumers;

  template <int kTokens>
  __device__ static void fetch(const WideArgs& args, const WideRings& rings, const CUtensorMap&, uint32_t rank, int) {
    WidePlace place;
    for (WideWalk walk(args, rank); walk.more(); walk.next()) {
      const int row_tile = static_cast<int>(walk.expert) * args.row_tiles + walk.row_tile;
      for (int half = 2 * walk.first_col; half < 2 * walk.last_col; ++half) {
        fetch_half(args, rings, place, row_tile, half);
        place.next(args.stages);
      }
    }
  }
  // One lane's: a stage.
  __device__ static void fetch_half(const WideArgs& args, const WideRings& rings, const WidePlace& place, int row_tile,
                                    int half) {
    ptx::barrier_wait(rings.weights_empty + 8 * place.stage, place.parity ^ 1);
    const uint32_t full = rings.weights_full + 8 * place.stage;
    ptx::barrier_expect(full, kRowStageBytes);
    Rows::fetch(args, rings.weights + place.stage * kRowStageBytes, row_tile, half, full);
  }

  template <int kTokens>
  __device__ static void multiply(const WideArgs& args, const WideRings& rings, uint32_t rank, int warp, int lane) {
    float sums[kTokens / 2];
    WidePlace weights;
    WidePlace x;
    WidePlace weights_read;  // the first one that has not been let go
    const auto release_weights = [&] {
      if (lane == 0) ptx::barrier_arrive(rings.weights_empty + 8 * weights_read.stage);
      weights_read.next(args.stages);
    };
    BlockRelease release_x(args, rings, rank, lane);
    const auto release_half = [&] {
      for (int part = 0; part <= args.two_parts; ++part) release_x.next();
    };
    const StagedStore<kTokens> staged_store(warp, lane);
    // Whether the last item's last two blocks of x have not been let go, since its sums lie there.
    bool keeps = false;
    bool ends_split = WideWalk::ends_split(args);
    for (WideWalk walk(args, rank); walk.more(); walk.next()) {
      release_x.begin(walk);
#pragma unroll
      for (float& sum : sums) {
        sum = 0;
        ptx::settle(sum);
      }
      const int halves = 2 * (walk.last_col - walk.first_col);
      for (int i = 0; i < halves; ++i) {
        ptx::barrier_wait(rings.weights_full + 8 * weights.stage, weights.parity);
        const uint64_t a = Rows::describe(rings.weights + weights.stage * kRowStageBytes, warp / 4);
        weights.next(args.stages);
        for (int part = 0; part <= args.two_parts; ++part) {
          ptx::barrier_wait(rings.x_full + 8 * x.stage, x.parity);
          const uint64_t b = describe_x(rings.x + x.stage * kWideXBytes<kTokens>);
          x.next(args.x_stages);
          ptx::warpgroup_fence();
#pragma unroll
          for (int k = 0; k < kWideInputs / 16; ++k) {
            ptx::warpgroup_product<kTokens>(sums, a + Rows::part(k), b + 2 * k);
          }
        }
        ptx::warpgroup_commit();
        // The products of this stage run on while the one before is let go.
        ptx::warpgroup_wait<1>();
        if (i == 0) continue;
        release_weights();
        if (keeps) {
          staged_store.wait_taken();
          for (int j = 0; j < kStagedBlocks; ++j) release_x.next_kept();
        }
        keeps = args.staged && walk.split == 1 && i == halves - 1;
        if (args.two_parts != 0 || !keeps) release_half();
      }
      ptx::warpgroup_wait<0>();
      release_weights();
      if (!keeps) release_half();
#pragma unroll
      for (float& sum : sums) ptx::settle(sum);
      if (keeps) {
        staged_store.start(args, rings, walk, release_x.place(), sums);
        continue;
      }
      if (walk.split > 1) ends_split = false;
      store_item<kTokens>(args, rings, walk, rank, warp, lane, sums);
    }
    if (args.staged) staged_store.end();
    // The item to split had no expert.
    if (ends_split) ptx::cluster_barrier();
  }
};

// For more than 128 tokens; of fewer, operands in registers are a little faster.
inline constexpr int kByRowsTokens = 256;
template <class Way = ByRows<TiledRows>>
WideKernel make_wide_by_rows() {
  return {.function = &wide_kernel<Way, kByRowsTokens>,
          .tokens = kByRowsTokens,
          .resident = kWideResident<kByRowsTokens>,
          .by_rows = true,
          .can_stage = true};
}

}  // namespace espalier::cuda
