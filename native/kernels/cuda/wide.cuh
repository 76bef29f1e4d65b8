// What the products of many tokens share: y = W x where x no longer is small change beside W.
//
// A block takes 128 rows of one expert and kTokens tokens at a time (an item): two warpgroups have 64 rows each. One
// warp of a third keeps tiles of weights coming, another blocks of x, each through a ring of its own in shared memory.
// A warp turns its tile into the registers that the tensor cores want while they still work on the tile before; x they
// read where it lies. Blocks of a cluster either have different rows and fetch each a share of the same x for all
// (`mates`), or the same rows and different inputs (`split`), and add up in the end. Sums are made in the same order
// whatever the grid is.
//
// A layout's struct Tile has, beside what product.cuh lists:
//   Operand             registers of a tile, with load(tile) and multiply<kHalf>(sums, x) for half of its inputs
#pragma once

#include <cuda.h>

#include "kernels/cuda/product.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/warpgroup.cuh"

namespace espalier::cuda {

struct WideArgs : ProductArgs {
  int token_blocks;  // of a group
  int row_groups;    // of a group: row blocks that mates take together
  int mates;
  int x_stages;
};

inline constexpr int kWideRowTiles = 8;
inline constexpr int kWideRows = kWideRowTiles * kTileHeight;
inline constexpr int kWideThreads = 3 * 128;
inline constexpr int kWideConsumers = 8;  // warps
// Inputs of a block of x: 128 bytes a token, which is what the swizzle of shared memory goes by.
inline constexpr int kWideInputs = 64;
// Row groups that go through all tokens before the next ones, so that what runs at the same time shares weights and x
// in the L2 cache.
inline constexpr int kWideBand = 8;

template <int kTokens>
constexpr int kWideXBytes = kTokens * kWideInputs * 2;
// Blocks of a multiprocessor. With two, one's weights come while the other ends, and there are more warps to expand
// tiles: what few tokens want, whose sums leave room for it. A warp then has one tile at a time.
template <int kTokens>
constexpr int kWideResident = kTokens <= 64 ? 2 : 1;

// Four lanes with four words each: lane t has row t, and gets column t.
__device__ __forceinline__ uint4 transpose(uint4 r, int t) {
  const bool odd = (t & 1) != 0;
  uint32_t s0 = __shfl_xor_sync(~0u, odd ? r.x : r.y, 1);
  uint32_t s1 = __shfl_xor_sync(~0u, odd ? r.z : r.w, 1);
  r = odd ? uint4{s0, r.y, s1, r.w} : uint4{r.x, s0, r.z, s1};
  const bool high = (t & 2) != 0;
  s0 = __shfl_xor_sync(~0u, high ? r.x : r.z, 2);
  s1 = __shfl_xor_sync(~0u, high ? r.y : r.w, 2);
  return high ? uint4{s0, s1, r.z, r.w} : uint4{r.x, r.y, s0, s1};
}

// The operand of tiles that expand into all their values.
template <class Tile>
struct ExpandedOperand {
  uint32_t a[kTileWidth / 16][4];

  __device__ __forceinline__ void load(Tile& tile, int t) {
    load_quarter<0>(tile, t);
    load_quarter<1>(tile, t);
    load_quarter<2>(tile, t);
    load_quarter<3>(tile, t);
  }

  template <int kHalf, int kTokens>
  __device__ __forceinline__ void multiply(float (&sums)[kTokens / 2], uint64_t x) {
#pragma unroll
    for (int i = kHalf * 4; i < kHalf * 4 + 4; ++i) {
#pragma unroll
      for (uint32_t& word : a[i]) ptx::settle(word);
    }
    ptx::warpgroup_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) ptx::warpgroup_product<kTokens>(sums, a[kHalf * 4 + i], x + 2 * i);
  }

 private:
  // Lane t has 8 neighbouring inputs of its rows, and the tensor cores want of it two of each 8.
  template <int kQuarter>
  __device__ __forceinline__ void load_quarter(Tile& tile, int t) {
    uint32_t first[4];
    uint32_t second[4];
    tile.template expand<kQuarter, 0>(first);
    tile.template expand<kQuarter, 1>(second);
    const uint4 upper = transpose({first[0], first[2], second[0], second[2]}, t);
    const uint4 lower = transpose({first[1], first[3], second[1], second[3]}, t);
    place<kQuarter, 0>(upper.x, lower.x);
    place<kQuarter, 1>(upper.y, lower.y);
    place<kQuarter, 2>(upper.z, lower.z);
    place<kQuarter, 3>(upper.w, lower.w);
  }
  template <int kQuarter, int kLane>
  __device__ __forceinline__ void place(uint32_t upper, uint32_t lower) {
    constexpr int kEight = Tile::input(kQuarter, kLane) / 8;
    a[kEight / 2][kEight % 2 * 2] = upper;
    a[kEight / 2][kEight % 2 * 2 + 1] = lower;
  }
};

// What a block goes through, in order.
class WideWalk {
 public:
  __device__ WideWalk(const WideArgs& args, uint32_t rank)
      : args_(args),
        clusters_(gridDim.x / (args.mates * args.split)),
        rank_(static_cast<int>(rank)),
        item_(blockIdx.x / (args.mates * args.split)) {
    const int part = args.split > 1 ? rank_ : 0;
    first_col = static_cast<int>(static_cast<int64_t>(args.col_tiles) * part / args.split);
    last_col = static_cast<int>(static_cast<int64_t>(args.col_tiles) * (part + 1) / args.split);
    find();
  }
  __device__ bool more() const { return item_ < args_.items; }
  __device__ void next() {
    item_ += clusters_;
    find();
  }

  int first_col;
  int last_col;
  int group = 0;
  int64_t expert = 0;
  int token = 0;     // the first one
  int row_tile = 0;  // the first one; a mate may have none left

 private:
  __device__ void find() {
    const int each = args_.row_groups * args_.token_blocks;
    for (; more(); item_ += clusters_) {
      group = item_ / each;
      expert = args_.experts != nullptr ? args_.experts[group] : args_.one_matrix ? 0 : group;
      if (expert < 0) continue;
      const int in_group = item_ - group * each;
      const int band = in_group / (kWideBand * args_.token_blocks);
      const int in_band = in_group - band * kWideBand * args_.token_blocks;
      const int width = min(kWideBand, args_.row_groups - band * kWideBand);
      token = in_band / width;
      row_tile = ((band * kWideBand + in_band - token * width) * args_.mates + (args_.mates > 1 ? rank_ : 0)) *
                 kWideRowTiles;
      return;
    }
  }

  const WideArgs& args_;
  const int clusters_;
  const int rank_;
  int item_;
};

// A ring's place: which stage, and the parity of the phase in which it is filled.
struct WidePlace {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void next(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

struct WideRings {
  uint32_t x;
  uint32_t weights;
  uint32_t x_full;
  uint32_t x_empty;
  uint32_t weights_full;
  uint32_t weights_empty;
};

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
  if (walk.more()) ahead.find(args, tile_at());
  WidePlace place;
  while (walk.more()) {
    const typename Tile::Source source = ahead;
    const int64_t tile = tile_at();
    if (++col == walk.last_col) {
      walk.next();
      col = walk.first_col;
    }
    if (walk.more()) ahead.find(args, tile_at());
    ptx::barrier_wait(rings.weights_empty + 8 * place.stage, place.parity ^ 1);
    const uint32_t full = rings.weights_full + 8 * place.stage;
    ptx::barrier_expect(full, source.bytes(args));
    source.copy(args, tile, rings.weights + (place.stage * kWideRowTiles + lane) * args.stage_bytes, full, policy);
    place.next(args.stages);
  }
}

// One lane's.
template <int kTokens>
__device__ void fetch_x(const WideArgs& args, const WideRings& rings, const CUtensorMap& x, uint32_t rank) {
  const int share = kTokens / args.mates;
  const int mine = args.mates > 1 ? static_cast<int>(rank) * share : 0;
  WidePlace place;
  for (WideWalk walk(args, rank); walk.more(); walk.next()) {
    const int row = walk.group * args.tokens + walk.token * kTokens + mine;
    for (int half = 2 * walk.first_col; half < 2 * walk.last_col; ++half) {
      for (int part = 0; part <= args.two_parts; ++part) {
        ptx::barrier_wait(rings.x_empty + 8 * place.stage, place.parity ^ 1);
        const uint32_t full = rings.x_full + 8 * place.stage;
        ptx::barrier_expect(full, kWideXBytes<kTokens>);
        const uint32_t to = rings.x + place.stage * kWideXBytes<kTokens> + mine * kWideInputs * 2;
        if (args.mates == 1) {
          ptx::tensor_load(to, &x, half * kWideInputs, part, row, full);
        } else {
          ptx::tensor_load_to(static_cast<uint16_t>((1u << args.mates) - 1), to, &x, half * kWideInputs, part, row,
                              full);
        }
        place.next(args.x_stages);
      }
    }
  }
}

// What wgmma takes for a block of x: rows of 128 bytes, 8 of them 1024 bytes, swizzled.
__device__ __forceinline__ uint64_t describe_x(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16 | (address & 0x3ffffu) >> 4;
}

// Stores what a warp has: of each eight tokens lane 4g + t has its rows g and g + 8 for 2t and 2t + 1, and stores two
// neighbouring rows for one of them. With `split`, this block stores each split-th eight.
template <int kTokens>
class WideStore {
 public:
  __device__ WideStore(const WideArgs& args, const WideWalk& walk, uint32_t rank, int row_tile, int lane)
      : args_(args), rank_(static_cast<int>(rank)), row_tile_(row_tile), odd_((lane & 4) != 0), in_eight_(lane / 8 * 2) {
    const int token = walk.token * kTokens + lane % 4 * 2 + (odd_ ? 1 : 0);
    row_of_y_ = static_cast<int64_t>(walk.group) * args.tokens + token;
    left_ = args.tokens - token;
  }

  __device__ __forceinline__ void store(const float (&sums)[kTokens / 2]) const {
    switch (args_.output) {
      case OutputType::kGated: store_gated(sums); break;
      case OutputType::kF32: store_rows(sums, static_cast<float*>(args_.y)); break;
      case OutputType::kBf16: store_rows(sums, static_cast<__nv_bfloat16*>(args_.y)); break;
    }
  }

 private:
  __device__ bool mine(int eight) const {
    return eight * 8 < left_ && (args_.split == 1 || eight % args_.split == rank_);
  }
  __device__ float2 neighbours(float even_token, float odd_token) const {
    const float other = __shfl_xor_sync(~0u, odd_ ? even_token : odd_token, 4);
    return odd_ ? float2{other, odd_token} : float2{even_token, other};
  }
  __device__ static void put(float* to, float2 rows) { *reinterpret_cast<float2*>(to) = rows; }
  __device__ static void put(__nv_bfloat16* to, float2 rows) {
    *reinterpret_cast<__nv_bfloat162*>(to) = __float22bfloat162_rn(rows);
  }

  template <class T>
  __device__ __forceinline__ void store_rows(const float (&sums)[kTokens / 2], T* y) const {
    const int row = row_tile_ * kTileHeight + in_eight_;
    T* to = y + row_of_y_ * args_.rows + row;
    const bool in_pairs = args_.rows % 2 == 0;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j, to += static_cast<int64_t>(8) * args_.rows) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 pair = neighbours(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
        const int left = args_.rows - row - 8 * half;
        if (!mine(j) || left <= 0) continue;
        if (in_pairs) {
          put(to + 8 * half, pair);
        } else {
          to[8 * half] = static_cast<T>(pair.x);
          if (left > 1) to[8 * half + 1] = static_cast<T>(pair.y);
        }
      }
    }
  }

  __device__ __forceinline__ void store_gated(const float (&sums)[kTokens / 2]) const {
    const auto gated = [](float gate, float up) { return __fdividef(gate, 1.0f + expf(-gate)) * up; };
    const int parts = 1 + args_.two_parts;
    const int stride = args_.rows / 2;
    auto* to = static_cast<__nv_bfloat16*>(args_.y) + row_of_y_ * parts * stride + row_tile_ * (kTileHeight / 2) + in_eight_;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j, to += static_cast<int64_t>(8) * parts * stride) {
      const float2 pair = neighbours(gated(sums[4 * j], sums[4 * j + 2]), gated(sums[4 * j + 1], sums[4 * j + 3]));
      if (!mine(j) || row_tile_ >= args_.row_tiles) continue;
      const __nv_bfloat162 large = __float22bfloat162_rn(pair);
      *reinterpret_cast<__nv_bfloat162*>(to) = large;
      if (parts == 2) put(to + stride, {rest(pair.x, large.x), rest(pair.y, large.y)});
    }
  }
  // Infinity stays infinity.
  __device__ static float rest(float value, __nv_bfloat16 large) {
    return isinf(value) ? 0.0f : value - __bfloat162float(large);
  }

  const WideArgs& args_;
  int64_t row_of_y_;
  int left_;
  const int rank_;
  const int row_tile_;
  const bool odd_;
  const int in_eight_;
};

// The two warpgroups that multiply.
template <class Tile, int kTokens>
__device__ void multiply_wide(const WideArgs& args, const WideRings& rings, uint32_t rank, int warp, int lane) {
  using Operand = typename Tile::Operand;
  float sums[kTokens / 2];
  WidePlace weights;
  WidePlace x;
  // The first ones that have not been let go.
  WidePlace x_read;
  WidePlace weights_read;
  const auto load = [&](Operand& operand) {
    ptx::barrier_wait(rings.weights_full + 8 * weights.stage, weights.parity);
    Tile tile;
    tile.begin(args, rings.weights + (weights.stage * kWideRowTiles + warp) * args.stage_bytes, lane);
    operand.load(tile, lane % 4);
    Tile::finish();
    weights.next(args.stages);
  };
  // Only when products have been started with the registers is it certain that they were read from shared memory.
  const auto release_weights = [&] {
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(rings.weights_empty + 8 * weights_read.stage);
    weights_read.next(args.stages);
  };
  // Starts the products of half a tile and the next block of x.
  const auto start = [&]<int kHalf>(Operand& operand) {
    ptx::barrier_wait(rings.x_full + 8 * x.stage, x.parity);
    operand.template multiply<kHalf, kTokens>(sums, describe_x(rings.x + x.stage * kWideXBytes<kTokens>));
    ptx::warpgroup_commit();
    x.next(args.x_stages);
  };
  const auto release_x = [&] {
    if (lane < args.mates) {
      ptx::barrier_arrive_in(rings.x_empty + 8 * x_read.stage, args.mates > 1 ? static_cast<uint32_t>(lane) : rank);
    }
    x_read.next(args.x_stages);
  };

  for (WideWalk walk(args, rank); walk.more(); walk.next()) {
#pragma unroll
    for (float& sum : sums) {
      sum = 0;
      ptx::settle(sum);
    }
    int left = walk.last_col - walk.first_col;
    if constexpr (kWideResident<kTokens> > 1) {
      Operand operand;
      for (; left > 0; --left) {
        load(operand);
        for (int part = 0; part <= args.two_parts; ++part) start.template operator()<0>(operand);
        for (int part = 0; part <= args.two_parts; ++part) start.template operator()<1>(operand);
        release_weights();
        ptx::warpgroup_wait<0>();
        for (int i = 0; i < 2 + 2 * args.two_parts; ++i) release_x();
      }
    } else {
      // The next tile is loaded while two blocks are under way.
      Operand operands[2];
      bool is_first = true;
      const auto step = [&](Operand& now, Operand& then) {
        start.template operator()<0>(now);
        ptx::warpgroup_wait<1>();
        if (!is_first) release_x();
        is_first = false;
        if (args.two_parts != 0) {
          start.template operator()<0>(now);
        } else {
          start.template operator()<1>(now);
        }
        if (args.two_parts == 0) release_weights();
        if (left > 1) load(then);
        ptx::warpgroup_wait<1>();
        release_x();
        for (int part = 0; part < 2 * args.two_parts; ++part) {
          start.template operator()<1>(now);
          if (part == 0) release_weights();
          ptx::warpgroup_wait<1>();
          release_x();
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
      release_x();
    }
#pragma unroll
    for (float& sum : sums) ptx::settle(sum);

    if (args.split > 1) {
      // All blocks of x have been read: their place is free for the sums, 16 bytes a thread for each 8 tokens.
      const uint32_t place = rings.x + (warp * 32 + lane) * 16;
      constexpr int kStep = kWideConsumers * 32 * 16;
      ptx::named_barrier(1, kWideConsumers * 32);
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        ptx::store_shared_16(place + j * kStep, {sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]});
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[4 * j + i] = 0;
      }
      ptx::cluster_barrier();
      for (int from = 0; from < args.split; ++from) {
        const uint32_t there = ptx::address_in(place, from);
#pragma unroll
        for (int j = 0; j < kTokens / 8; ++j) {
          if (j % args.split != static_cast<int>(rank)) continue;
          const float4 part = ptx::load_cluster_16(there + j * kStep);
          sums[4 * j] += part.x;
          sums[4 * j + 1] += part.y;
          sums[4 * j + 2] += part.z;
          sums[4 * j + 3] += part.w;
        }
      }
    }
    WideStore<kTokens>(args, walk, rank, walk.row_tile + warp, lane).store(sums);
    // There are as many clusters as items.
    if (args.split > 1) return;
  }
  if (args.split > 1) ptx::cluster_barrier();
}

template <class Tile, int kTokens>
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
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor(&x);
    for (int i = 0; i < args.x_stages; ++i) {
      ptx::barrier_init(rings.x_full + 8 * i, 1);
      ptx::barrier_init(rings.x_empty + 8 * i, kWideConsumers * args.mates);
    }
    for (int i = 0; i < args.stages; ++i) {
      ptx::barrier_init(rings.weights_full + 8 * i, kWideRowTiles);
      ptx::barrier_init(rings.weights_empty + 8 * i, kWideConsumers);
    }
    ptx::barrier_init_fence();
  }
  ptx::cluster_barrier();
  ptx::allow_next();
  if (warp < 4) {
    ptx::give_registers<40>();
    if (warp == 0 && lane < kWideRowTiles) {
      if (!args.early) ptx::wait_for_previous();
      fetch_weights<Tile>(args, rings, rank, lane);
    } else if (warp == 1 && lane == 0) {
      ptx::wait_for_previous();
      fetch_x<kTokens>(args, rings, x, rank);
    }
    __syncwarp();
    if (args.split > 1) ptx::cluster_barrier();
  } else {
    ptx::take_registers<(kWideResident<kTokens> > 1 ? 96 : 232)>();
    ptx::wait_for_previous();
    multiply_wide<Tile, kTokens>(args, rings, rank, warp - 4, lane);
  }
  // Nobody leaves whose shared memory another one of the cluster may still use.
  ptx::cluster_barrier();
}

// Empty where the tensor cores have no products of warpgroups: such devices are not given it.
template <class Tile, int kTokens>
__global__ void __launch_bounds__(kWideThreads, kWideResident<kTokens>)
    wide_kernel(const __grid_constant__ WideArgs args, const __grid_constant__ CUtensorMap x) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wide_block<Tile, kTokens>(args, x);
#endif
}

// A kernel, the tokens that it takes at a time, and the blocks of a multiprocessor.
struct WideKernel {
  void (*function)(WideArgs, CUtensorMap) = nullptr;
  int tokens = 0;
  int resident = 0;
};

template <class Tile, int kTokens>
WideKernel make_wide() {
  return {&wide_kernel<Tile, kTokens>, kTokens, kWideResident<kTokens>};
}

// The kernel of a layout for groups of so many tokens.
template <class Tile>
WideKernel choose_wide(int tokens) {
  if (tokens <= 32) return make_wide<Tile, 32>();
  if (tokens <= 64) return make_wide<Tile, 64>();
  if (tokens <= 128) return make_wide<Tile, 128>();
  return make_wide<Tile, 256>();
}
WideKernel dense_wide(int tokens);
WideKernel two_four_wide(int tokens);
WideKernel balanced_wide(int tokens);
WideKernel bitmap_wide(int tokens);

}  // namespace espalier::cuda
