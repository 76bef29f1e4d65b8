// What the products of many tokens share: y = W x where x no longer is small change beside W.
//
// A block takes 128 rows of one expert and kTokens tokens at a time (an item): two warpgroups have 64 rows each. One
// warp of a third keeps tiles of weights coming, another blocks of x, each through a ring of its own in shared memory.
// A warp turns its tile into the registers that the tensor cores want while they still work on the tile before; x they
// read where it lies. Blocks of a cluster either have different rows and fetch each a share of the same x for all
// (`mates`), or the same rows and different inputs (`split`), and add up in the end (wide_split.cuh). Mates, too, split
// the last items, which would not fill the device. Sums are made in the same order whatever the grid is.
//
// Dense weights of more than 128 tokens are not turned into registers: wide_dense.cuh. Others that are expanded once
// for all tokens: wide_expanded.cuh.
//
// A layout's struct Tile has, beside what product.cuh lists:
//   Operand             registers of a tile, see wide_operand.cuh, with load(tile, lane, room) and
//                       multiply<kHalf>(sums, x) for half of its inputs
#pragma once

#include <cuda.h>

#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/warpgroup.cuh"
#include "kernels/cuda/wide_fetch.cuh"
#include "kernels/cuda/wide_operand.cuh"
#include "kernels/cuda/wide_split.cuh"
#include "kernels/cuda/wide_staged_store.cuh"
#include "kernels/cuda/wide_walk.cuh"

namespace espalier::cuda {

// What wgmma takes for a block of x: rows of 128 bytes, 8 of them 1024 bytes, swizzled.
__device__ __forceinline__ uint64_t describe_x(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16 | (address & 0x3ffffu) >> 4;
}

// How a warp lets go of blocks of x: what mates fetch for each other, each lets go of for all; what a block has fetched
// for itself, for itself as often.
class BlockRelease {
 public:
  __device__ BlockRelease(const WideArgs& args, const WideRings& rings, uint32_t rank, int lane)
      : of_mates_(ptx::address_in(rings.x_empty, args.mates > 1 ? static_cast<uint32_t>(lane % args.mates) : rank)),
        own_(ptx::address_in(rings.x_empty, rank)),
        there_(own_),
        arrives_(lane < args.mates),
        stages_(args.x_stages) {}
  // Before the first block of an item.
  __device__ void begin(const WideWalk& walk) { there_ = walk.split == 1 ? of_mates_ : own_; }
  __device__ __forceinline__ void next() { next(there_); }
  // Of an item that has ended, which was not split.
  __device__ __forceinline__ void next_kept() { next(of_mates_); }
  __device__ WidePlace place() const { return place_; }

 private:
  __device__ __forceinline__ void next(uint32_t there) {
    if (arrives_) ptx::barrier_arrive_there(there + 8 * place_.stage);
    place_.next(stages_);
  }

  const uint32_t of_mates_;
  const uint32_t own_;
  uint32_t there_;
  const bool arrives_;
  const int stages_;
  WidePlace place_;  // the first one that has not been let go
};

// The two warpgroups that multiply. kStaged: whether sums may go out through shared memory.
template <class Tile, int kTokens, bool kStaged>
__device__ void multiply_wide(const WideArgs& args, const WideRings& rings, uint32_t rank, int warp, int lane) {
  using Operand = typename Tile::Operand;
  const typename Tile::Lane of_lane(lane);
  float sums[kTokens / 2];
  WidePlace weights;
  WidePlace x;
  WidePlace weights_read;  // the first one that has not been let go
  const auto load = [&](Operand& operand) {
    ptx::barrier_wait(rings.weights_full + 8 * weights.stage, weights.parity);
    Tile tile;
    tile.begin(args, rings.weights + (weights.stage * kWideRowTiles + warp) * args.stage_bytes, of_lane);
    operand.load(tile, lane, rings.beside + warp * Operand::kRoom);
    weights.next(args.stages);
  };
  // Only when products have been started with the registers is it certain that they were read from shared memory.
  const auto release_weights = [&] {
    ptx::named_barrier(2 + warp / 4, 128);
    if (warp % 4 == 0 && lane == 0) ptx::barrier_arrive(rings.weights_empty + 8 * weights_read.stage);
    weights_read.next(args.stages);
  };
  // Starts the products of half a tile and the next block of x.
  const auto start = [&]<int kHalf>(Operand& operand) {
    ptx::barrier_wait(rings.x_full + 8 * x.stage, x.parity);
    operand.template multiply<kHalf, kTokens>(sums, describe_x(rings.x + x.stage * kWideXBytes<kTokens>));
    ptx::warpgroup_commit();
    x.next(args.x_stages);
  };
  BlockRelease release_x(args, rings, rank, lane);
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
    int left = walk.last_col - walk.first_col;
    if constexpr (!kLoadsAhead<kTokens>) {
      Operand operand;
      for (; left > 0; --left) {
        load(operand);
        for (int part = 0; part <= args.two_parts; ++part) start.template operator()<0>(operand);
        for (int part = 0; part <= args.two_parts; ++part) start.template operator()<1>(operand);
        release_weights();
        ptx::warpgroup_wait<0>();
        for (int i = 0; i < 2 + 2 * args.two_parts; ++i) release_x.next();
      }
    } else {
      // The next tile is loaded while two blocks are under way.
      Operand operands[2];
      bool is_first = true;
      const auto step = [&](Operand& now, Operand& then) {
        start.template operator()<0>(now);
        ptx::warpgroup_wait<1>();
        if (!is_first) release_x.next();
        is_first = false;
        if (args.two_parts != 0) {
          start.template operator()<0>(now);
        } else {
          start.template operator()<1>(now);
        }
        if (args.two_parts == 0) release_weights();
        if (left > 1) load(then);
        ptx::warpgroup_wait<1>();
        if constexpr (kStaged) {
          if (keeps) {
            staged_store.wait_taken();
            for (int i = 0; i < kStagedBlocks; ++i) release_x.next_kept();
          }
          keeps = args.staged && walk.split == 1 && left == 1;
        }
        if (args.two_parts != 0 || !keeps) release_x.next();
        for (int part = 0; part < 2 * args.two_parts; ++part) {
          start.template operator()<1>(now);
          if (part == 0) release_weights();
          ptx::warpgroup_wait<1>();
          if (part == 0 || !keeps) release_x.next();
        }
        --left;
      };
      load(operands[0]);
      while (true) {
        step(operands[0], operands[1]);
        if (left == 0) break;
        step(operands[1], operands[0]);
        if (left == 0) break;
      }
      ptx::warpgroup_wait<0>();
      if (!keeps) release_x.next();
    }
#pragma unroll
    for (float& sum : sums) ptx::settle(sum);

    if constexpr (kStaged) {
      if (keeps) {
        staged_store.start(args, rings, walk, release_x.place(), sums);
        continue;
      }
    }
    if (walk.split > 1) ends_split = false;
    store_item<kTokens>(args, rings, walk, rank, warp, lane, sums);
  }
  if (args.staged) staged_store.end();
  // The item to split had no expert.
  if (ends_split) ptx::cluster_barrier();
}

// Of most ways of weights: the warps of the first warpgroup only fetch.
struct WideFetches {
  static constexpr bool kHelps = false;
  // Registers of the first warpgroup, and of the two that multiply, where these have the multiprocessor to themselves.
  static constexpr int kFetcherRegisters = 40;
  static constexpr int kRegisters = 232;

  // By one thread of a block, when nothing else is left to do.
  __device__ static void end(const WideArgs&) {}
};

// How weights become operands. This one: from their tiles in shared memory to registers.
template <class Tile, bool kStaged>
struct ByRegisters : WideFetches {
  // Lanes that fetch, those of them that announce a stage, and those that let go of it.
  static constexpr int kFetchLanes = kWideRowTiles;
  static constexpr int kFetchers = kWideRowTiles;
  static constexpr int kReleases = kWideConsumers / 4;

  template <int kTokens>
  __device__ static void fetch(const WideArgs& args, const WideRings& rings, const CUtensorMap&, uint32_t rank,
                               int lane) {
    fetch_weights<Tile>(args, rings, rank, lane);
  }
  template <int kTokens>
  __device__ static void multiply(const WideArgs& args, const WideRings& rings, uint32_t rank, int warp, int lane) {
    multiply_wide<Tile, kTokens, kStaged>(args, rings, rank, warp, lane);
  }
};

template <class Way, int kTokens>
__device__ void wide_block(const WideArgs& args, const CUtensorMap& x) {
  extern __shared__ __align__(1024) uint8_t wide_shared[];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const uint32_t rank = ptx::cluster_rank();
  WideRings rings{};
  rings.x = ptx::shared_address(wide_shared);
  rings.weights = rings.x + args.x_stages * kWideXBytes<kTokens>;
  rings.x_full = rings.weights + args.stages * kWideRowTiles * args.stage_bytes;
  rings.x_empty = rings.x_full + 8 * args.x_stages;
  rings.weights_full = rings.x_empty + 8 * args.x_stages;
  rings.weights_empty = rings.weights_full + 8 * args.stages;
  rings.beside = (rings.weights_empty + 8 * args.stages + kBeside - 1) / kBeside * kBeside;
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor(&x);
    for (int i = 0; i < args.x_stages; ++i) {
      ptx::barrier_init(rings.x_full + 8 * i, 1);
      ptx::barrier_init(rings.x_empty + 8 * i, kWideConsumers * args.mates);
    }
    for (int i = 0; i < args.stages; ++i) {
      ptx::barrier_init(rings.weights_full + 8 * i, Way::kFetchers);
      ptx::barrier_init(rings.weights_empty + 8 * i, Way::kReleases);
    }
    ptx::barrier_init_fence();
  }
  ptx::cluster_barrier();
  ptx::allow_next();
  if (warp < 4) {
    ptx::give_registers<Way::kFetcherRegisters>();
    if (warp == 0 && lane < Way::kFetchLanes) {
      if (!args.early) ptx::wait_for_previous();
      Way::template fetch<kTokens>(args, rings, x, rank, lane);
    } else if constexpr (Way::kHelps) {
      if (warp > 0) {
        ptx::wait_for_previous();
        Way::help(args, rings, warp - 1, lane);
      }
    } else if (warp == 1 && lane == 0) {
      ptx::wait_for_previous();
      fetch_x<kTokens>(args, rings, x, rank);
    }
    __syncwarp();
    if (WideWalk::ends_split(args)) ptx::cluster_barrier();
  } else {
    ptx::take_registers<(kWideResident<kTokens> > 1 ? 96 : Way::kRegisters)>();
    ptx::wait_for_previous();
    Way::template multiply<kTokens>(args, rings, rank, warp - 4, lane);
  }
  // Nobody leaves whose shared memory another one of the cluster may still use.
  ptx::cluster_barrier();
  if (threadIdx.x == 0) Way::end(args);
}

// Empty where the tensor cores have no products of warpgroups: such devices are not given it.
template <class Way, int kTokens>
__global__ void __launch_bounds__(kWideThreads, kWideResident<kTokens>)
    wide_kernel(const __grid_constant__ WideArgs args, const __grid_constant__ CUtensorMap x) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wide_block<Way, kTokens>(args, x);
#endif
}

// A kernel, the tokens that it takes at a time, and the blocks of a multiprocessor.
struct WideKernel {
  void (*function)(WideArgs, CUtensorMap) = nullptr;
  int tokens = 0;
  int resident = 0;
  // Whether a stage of weights is 64 inputs of 128 rows, see wide_dense.cuh; else 8 tiles.
  bool by_rows = false;
  // Whether sums may go out through shared memory, see wide_staged_store.cuh.
  bool can_stage = false;
  int operand_bytes = 0;  // of shared memory, for the operands of all warps
  // Tiles that a warp has at a time that expands them, see wide_expanded.cuh.
  int expand_batch = 0;
};

template <class Tile, int kTokens, bool kStages>
WideKernel make_wide() {
  constexpr bool kStaged = kStages && kLoadsAhead<kTokens>;
  return {.function = &wide_kernel<ByRegisters<Tile, kStaged>, kTokens>,
          .tokens = kTokens,
          .resident = kWideResident<kTokens>,
          .can_stage = kStaged,
          .operand_bytes = kWideConsumers * Tile::Operand::kRoom};
}

// The kernel of a layout for groups of so many tokens. kStages: not for n:32, to whose loop it adds more than it saves
// behind it.
template <class Tile, bool kStages = true>
WideKernel choose_wide(int tokens) {
  if (tokens <= 32) return make_wide<Tile, 32, kStages>();
  if (tokens <= 64) return make_wide<Tile, 64, kStages>();
  if (tokens <= 128) return make_wide<Tile, 128, kStages>();
  return make_wide<Tile, 256, kStages>();
}
WideKernel dense_wide(int tokens);
WideKernel two_four_wide(int tokens);
WideKernel balanced_wide(int tokens);
WideKernel bitmap_wide(int tokens);
WideKernel dense_int8_wide(int tokens);
WideKernel two_four_int8_wide(int tokens);

// Those that expand on the way.
WideKernel balanced_expanded();
WideKernel bitmap_expanded();

}  // namespace espalier::cuda
