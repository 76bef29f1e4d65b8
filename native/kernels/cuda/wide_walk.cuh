// What the warps of a product of many tokens go through, and the rings in shared memory between them.
#pragma once

#include <cuda.h>

#include "kernels/cuda/product.cuh"

namespace espalier::cuda {

// Items of a launch: of each group, row groups by blocks of tokens.
struct WideItems {
  int count = 0;
  int each = 0;  // of a group
  int row_groups = 0;
  Divisor by_each;
  Divisor by_rest;  // row groups of the last band, if it is not a whole one
};

// Whole items come first, then those whose inputs the blocks of a cluster split.
struct WideArgs : ProductArgs {
  int token_blocks;  // of a group
  Divisor by_band;   // items of a band
  WideItems whole;   // in row groups of row blocks that mates take together
  int mates;
  WideItems parted;     // no more than clusters; a row group is a row block
  int parted_row_tile;  // the first one of these
  int x_stages;
  CUtensorMap tensor;    // of dense weights, see wide_dense.cuh
  bool staged;           // whether sums go out as wide_staged_store.cuh says
  CUtensorMap y_tensor;  // then: y
  // Of weights that are expanded on the way, see wide_expanded.cuh.
  uint16_t* expanded;
  uint32_t* progress;
  int expand_bytes;      // of a stage of tiles before
  int expand_row_tiles;  // that are expanded together
};

inline constexpr int kWideRowTiles = 8;
inline constexpr int kWideThreads = 3 * 128;
inline constexpr int kWideConsumers = 8;  // warps
// Inputs of a block of x: 128 bytes a token, which is what the swizzle of shared memory goes by.
inline constexpr int kWideInputs = 64;
// Blocks of a cluster, at most.
inline constexpr int kMostSplit = 8;
// Row groups that go through all tokens before the next ones, so that what runs at the same time shares weights and x
// in the L2 cache.
inline constexpr int kWideBand = 8;

// What the address of what a way of weights has beside the rings is a multiple of.
inline constexpr int kBeside = 256;

template <int kTokens>
constexpr int kWideXBytes = kTokens* kWideInputs * 2;
// Blocks of a multiprocessor. With two, one's weights come while the other ends, and there are more warps to expand
// tiles: what few tokens want, whose sums leave room for it.
template <int kTokens>
constexpr int kWideResident = kTokens <= 64 ? 2 : 1;
// Whether a warp has the registers for the next tile beside the one at hand. RingSizes must know what it then holds.
template <int kTokens>
constexpr bool kLoadsAhead = kWideResident<kTokens> == 1;

// What a block goes through, in order.
class WideWalk {
 public:
  __device__ WideWalk(const WideArgs& args, uint32_t rank)
      : args_(args), clusters_(clusters(args)), rank_(static_cast<int>(rank)), item_(first(args)) {
    find();
  }
  __device__ bool more() const { return item_ < args_.whole.count + args_.parted.count; }
  __device__ void next() {
    item_ += clusters_;
    find();
  }
  // Whether the last item of this cluster is one that its blocks split, even if no expert is to be used.
  __device__ static bool ends_split(const WideArgs& args) {
    const int before = max(args.whole.count - first(args), 0);
    const int rounds = (before + clusters(args) - 1) / clusters(args);
    return first(args) + rounds * clusters(args) < args.whole.count + args.parted.count;
  }

  int split = 1;  // blocks that share the inputs
  int first_col = 0;
  int last_col = 0;
  int group = 0;
  int64_t expert = 0;
  int token = 0;     // block of tokens
  int row_tile = 0;  // the first one; a mate may have none left

 private:
  __device__ static int cluster(const WideArgs& args) { return args.mates * args.split; }
  __device__ static int clusters(const WideArgs& args) { return gridDim.x / cluster(args); }
  __device__ static int first(const WideArgs& args) { return blockIdx.x / cluster(args); }

  __device__ void find() {
    for (; more(); item_ += clusters_) {
      const bool is_split = item_ >= args_.whole.count;
      // Not a reference: addresses of arguments would be asked of memory.
      const WideItems items = is_split ? args_.parted : args_.whole;
      split = is_split ? cluster(args_) : 1;
      const int index = is_split ? item_ - args_.whole.count : item_;
      group = items.by_each.divide(index);
      expert = args_.experts != nullptr ? args_.experts[group] : args_.one_matrix ? 0 : group;
      if (expert < 0) continue;
      const int in_group = index - group * items.each;
      const int band = args_.by_band.divide(in_group);
      const int in_band = in_group - band * kWideBand * args_.token_blocks;
      const int width = min(kWideBand, items.row_groups - band * kWideBand);
      token = width == kWideBand ? in_band / kWideBand : items.by_rest.divide(in_band);
      const int row_group = band * kWideBand + in_band - token * width;
      row_tile = is_split ? args_.parted_row_tile + row_group * kWideRowTiles
                          : (row_group * args_.mates + (args_.mates > 1 ? rank_ : 0)) * kWideRowTiles;
      first_col = is_split ? args_.col_tiles * rank_ / split : 0;
      last_col = is_split ? args_.col_tiles * (rank_ + 1) / split : args_.col_tiles;
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
  uint32_t beside;  // where what a way of weights has beside these begins
};

}  // namespace espalier::cuda
