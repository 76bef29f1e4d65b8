// Weights with zeros anywhere in products of many tokens: three warps of each block expand tiles into a dense matrix in
// memory, once for all tokens, while others multiply by what has been expanded, as wide_dense.cuh does. The products
// may be those of the first rows only.
//
// Warps claim tiles in the order in which products come to need them, and nobody waits for a block that may not have
// started: whoever claims a tile expands it. A tile's word in `progress` then has the number of the launch.
#pragma once

#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/wide_dense.cuh"

namespace espalier::cuda {

// Words of `progress`: how many tiles have been claimed, how many blocks are done, how many launches are; then a word
// for each tile. All are zero at first.
inline constexpr int kClaimed = 0;
inline constexpr int kBlocksDone = 1;
inline constexpr int kLaunches = 2;
inline constexpr int kTileWords = 32;
static_assert(expansion_words(0) == kTileWords);

inline constexpr int kExpanders = 3;
// A warp's memory: a batch of tiles as it comes, and its barriers.
__host__ __device__ constexpr int expander_bytes(int batch, int stage_bytes) { return batch * (stage_bytes + 8); }

// What stands for a tile where there is none: of the parts that a cluster splits, some are shorter; or all have been
// claimed.
inline constexpr int kNoTile = -1;
inline constexpr int kAllClaimed = -2;

// Rows that are expanded together go through the inputs together, the parts of a split in turns.
class ExpandOrder {
 public:
  __device__ explicit ExpandOrder(const WideArgs& args)
      : args_(args), turns_((args.col_tiles + args.split - 1) / args.split * args.split) {
    find_width();
  }
  // Claims of a warp ascend.
  __device__ int tile_of(int claim) {
    while (claim - before_ >= width_ * turns_) {
      before_ += width_ * turns_;
      first_ += width_;
      find_width();
      if (width_ == 0) return kAllClaimed;
    }
    const int turn = (claim - before_) / width_;
    const int row_tile = first_ + claim - before_ - turn * width_;
    int col = turn;
    if (args_.split > 1) {
      const int part = turn % args_.split;
      col = args_.col_tiles * part / args_.split + turn / args_.split;
      if (col >= args_.col_tiles * (part + 1) / args_.split) return kNoTile;
    }
    return row_tile * args_.col_tiles + col;
  }

 private:
  __device__ void find_width() { width_ = min(args_.expand_row_tiles, args_.row_tiles - first_); }

  const WideArgs& args_;
  const int turns_;
  int first_ = 0;   // row tile of those that are expanded together now
  int before_ = 0;  // claims
  int width_;
};

// What a warp does that expands. It claims, and tells others of, kBatch tiles together: each waits for memory, and so
// do fences behind it, which would take longer than expanding a tile. Lane i has what concerns the i-th tile of a
// batch.
template <class Tile, int kBatch>
class Expander {
 public:
  __device__ Expander(const WideArgs& args, uint32_t ring, uint32_t barriers, int lane)
      : args_(args), ring_(ring), barriers_(barriers), lane_(lane), of_lane_(lane), order_(args) {
    if (lane == 0) {
      for (int i = 0; i < kBatch; ++i) ptx::barrier_init(barriers + 8 * i, 1);
      ptx::barrier_init_fence();
    }
    __syncwarp();
    launch_ = args.progress[kLaunches] + 1;
  }

  // While a batch is expanded, the next one comes, and the one after that is claimed.
  __device__ void run() {
    claim();
    Batch now = look();
    for (int i = 0; i < kBatch; ++i) fetch(now, i);
    claim();
    Batch next = look();
    uint32_t parities = 0;
    while (true) {
      Batch later;
      for (int i = 0; i < kBatch; ++i) {
        const int tile = __shfl_sync(~0u, now.tile, i);
        if (tile == kAllClaimed) {
          publish(now, i);
          return;
        }
        if (tile != kNoTile) {
          expand(tile, i, parities >> i & 1);
          parities ^= 1u << i;
        }
        fetch(next, i);
        if (i == 0) claim();
        if (i == 1) later = look();
      }
      publish(now, kBatch);
      now = next;
      next = later;
    }
  }

 private:
  struct Batch {
    int tile = kNoTile;
    typename Tile::Source source{};
  };

  __device__ void claim() {
    if (lane_ == 0) claimed_ = atomicAdd(args_.progress + kClaimed, kBatch);
  }
  __device__ Batch look() {
    Batch batch;
    const int first = static_cast<int>(__shfl_sync(~0u, claimed_, 0));
    if (lane_ >= kBatch) return batch;
    batch.tile = order_.tile_of(first + lane_);
    if (batch.tile >= 0) batch.source.seek(args_, batch.tile);
    return batch;
  }
  __device__ void fetch(const Batch& batch, int i) {
    if (lane_ != i || batch.tile < 0) return;
    const uint32_t full = barriers_ + 8 * i;
    ptx::barrier_expect(full, batch.source.bytes(args_));
    batch.source.copy(args_, ring_ + i * args_.expand_bytes, full, ptx::read_once_policy());
  }
  __device__ void expand(int tile, int i, uint32_t parity) {
    ptx::barrier_wait(barriers_ + 8 * i, parity);
    Tile from;
    from.begin(args_, ring_ + i * args_.expand_bytes, of_lane_);
    const int row_tile = tile / args_.col_tiles;
    put_rows(from, lane_, args_.expanded, args_.col_tiles, row_tile, tile - row_tile * args_.col_tiles);
    __syncwarp();
  }
  // Tells of the first tiles of a batch, which have been expanded.
  __device__ void publish(const Batch& batch, int count) {
    ptx::copy_engine_global_fence();
    __syncwarp();
    if (lane_ < count && batch.tile >= 0) {
      ptx::store_release_device(args_.progress + kTileWords + batch.tile, launch_);
    }
  }

  const WideArgs& args_;
  const uint32_t ring_;
  const uint32_t barriers_;
  const int lane_;
  const typename Tile::Lane of_lane_;
  ExpandOrder order_;
  uint32_t launch_;
  uint32_t claimed_ = 0;
};

template <class Tile, int kBatch>
struct ByExpansion : ByRows<MatrixRows> {
  static constexpr bool kHelps = true;
  static constexpr int kFetcherRegisters = 104;
  static constexpr int kRegisters = 200;
  static constexpr int kFetchLanes = 32;

  // A whole warp looks whether tiles are there, one lane fetches them and x.
  template <int kTokens>
  __device__ static void fetch(const WideArgs& args, const WideRings& rings, const CUtensorMap& x, uint32_t rank,
                               int lane) {
    const uint32_t launch = args.progress[kLaunches] + 1;
    WidePlace place;
    WidePlace x_place;
    const int mine = args.mates > 1 ? static_cast<int>(rank) * (kTokens / args.mates) : 0;
    for (WideWalk walk(args, rank); walk.more(); walk.next()) {
      const int row = walk.group * args.tokens + walk.token * kTokens;
      int ready = walk.first_col;
      for (int half = 2 * walk.first_col; half < 2 * walk.last_col; ++half) {
        if (half == 2 * ready) ready = wait_for_tiles(args, walk, ready, launch, lane);
        if (lane == 0) {
          fetch_half(args, rings, place, walk.row_tile, half);
          for (int part = 0; part <= args.two_parts; ++part) {
            fetch_block<kTokens>(args, rings, x, walk, row, mine, half, part, x_place);
          }
        }
        __syncwarp();
        place.next(args.stages);
      }
    }
  }

  __device__ static void help(const WideArgs& args, const WideRings& rings, int warp, int lane) {
    const int bytes = kBatch * args.expand_bytes;
    const uint32_t barriers = rings.beside + kExpanders * bytes + warp * kBatch * 8;
    Expander<Tile, kBatch>(args, rings.beside + warp * bytes, barriers, lane).run();
  }

  // The last block makes everything ready for the next launch.
  __device__ static void end(const WideArgs& args) {
    if (atomicAdd(args.progress + kBlocksDone, 1) + 1 != gridDim.x) return;
    args.progress[kClaimed] = 0;
    args.progress[kBlocksDone] = 0;
    ++args.progress[kLaunches];
  }

 private:
  // Returns when the tiles of column `first` are there, with the first column that may not be. Eight lanes look at a
  // column.
  __device__ static int wait_for_tiles(const WideArgs& args, const WideWalk& walk, int first, uint32_t launch,
                                       int lane) {
    const int row_tile = walk.row_tile + lane % kWideRowTiles;
    const int col = first + lane / kWideRowTiles;
    const bool exists = row_tile < args.row_tiles && col < walk.last_col;
    const uint32_t* const word = args.progress + kTileWords + static_cast<int64_t>(row_tile) * args.col_tiles + col;
    // Asking without a pause would keep the expanding warps from memory.
    constexpr int kPauseNanoseconds = 100;
    uint32_t missing;
    while (true) {
      missing = __ballot_sync(~0u, exists && ptx::load_acquire_device(word) != launch);
      if ((missing & ((1u << kWideRowTiles) - 1)) == 0) break;
      __nanosleep(kPauseNanoseconds);
    }
    ptx::copy_engine_global_fence();
    return first + (missing == 0 ? 32 : __ffs(static_cast<int>(missing)) - 1) / kWideRowTiles;
  }
};

static_assert(kExpandedItemRows == kWideRowTiles * kTileHeight && kExpandedItemTokens == kByRowsTokens);

template <class Tile, int kBatch>
WideKernel make_expanded() {
  WideKernel kernel = make_wide_by_rows<ByExpansion<Tile, kBatch>>();
  kernel.expand_batch = kBatch;
  return kernel;
}

}  // namespace espalier::cuda
