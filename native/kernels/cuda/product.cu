// Checks products and starts their kernels.
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <string>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/product_launch.h"
#include "kernels/cuda/tile_bytes.h"

namespace espalier::cuda {
namespace {

// A launch of no more tiles for each multiprocessor is brief.
constexpr int64_t kBriefTiles = 48;

ProductKernel find_kernel(TileLayout layout, int tokens, bool is_brief) {
  switch (layout) {
    case TileLayout::kDense: return dense_kernel(tokens);
    case TileLayout::kTwoFour: return two_four_kernel(tokens);
    case TileLayout::kBalanced: return balanced_kernel(tokens);
    case TileLayout::kBitmap: return bitmap_kernel(tokens, is_brief);
    case TileLayout::kDenseInt8: return dense_int8_kernel(tokens);
    case TileLayout::kTwoFourInt8: return two_four_int8_kernel(tokens, is_brief);
  }
  return {};
}

// Bytes of shared memory for one tile.
int stage_bytes(const DeviceTiles& weights) {
  const bool is_bitmap = weights.layout == TileLayout::kBitmap;
  return (is_bitmap ? weights.most_tile_bytes : fixed_tile_bytes(weights.layout, weights.n)) +
         bytes_beyond(weights.layout);
}

constexpr int kMostStages = 8;
// Blocks of a launch on a multiprocessor: what it has more room for is the next launch's.
constexpr int kMostBlocks = 2;
// Bytes that are brought into the L2 cache ahead: half of it.
constexpr int64_t kMostPrefetch = 24 << 20;

// Whether teams of `split` warps make up a block, and there are barriers for all of them.
bool splits(int warps, int split) { return warps % split == 0 && (split == 1 || warps / split <= 15); }

// Teams of a block have neighbouring items, which share x, unless that leaves more than one block in twenty without
// any. Returns the blocks.
int place_items(ProductArgs& args, int teams, int most_blocks) {
  const int filled = std::min((args.items + teams - 1) / teams, most_blocks);
  const bool spread = filled < most_blocks * 19 / 20;
  const int blocks = spread ? std::min(args.items, most_blocks) : filled;
  args.block_step = spread ? 1 : teams;
  args.team_step = spread ? blocks : 1;
  return blocks;
}

Status check_rows(const Product& product) {
  if (product.tokens * product.parts <= kMostFewRows) return Status::ok();
  return Status(Code::kUsage, "a product of few tokens takes 1 to " + std::to_string(kMostFewRows) +
                                  " rows of bf16 in one or two parts, not " + std::to_string(product.tokens) +
                                  " tokens of " + std::to_string(product.parts));
}

}  // namespace

DeviceTiles describe_tiles(const TiledWeights& host, const uint8_t* tiles, const uint32_t* starts) {
  return {host.layout, host.count, host.rows,
          host.cols,   host.n,     host.most_tile_bytes,
          tiles,       starts,     static_cast<int64_t>(host.tiles.size())};
}

int choose_split(int items, int col_tiles, int warps, int multiprocessors) {
  int best = warps;
  int64_t least = INT64_MAX;
  for (int split = warps; split >= 1; --split) {
    if (!splits(warps, split)) continue;
    const int64_t teams = static_cast<int64_t>(warps / split) * multiprocessors;
    const int64_t rounds = (items + teams - 1) / teams;
    const int64_t cost = rounds * (3 * ((col_tiles + split - 1) / split) + 1);
    if (cost < least) {
      least = cost;
      best = split;
    }
  }
  return best;
}

Result<DeviceLimits> current_limits() {
  DeviceLimits limits;
  ESPALIER_CUDA_TRY(cudaGetDevice(&limits.device));
  ESPALIER_CUDA_TRY(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, limits.device));
  ESPALIER_CUDA_TRY(
      cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, limits.device));
  ESPALIER_CUDA_TRY(
      cudaDeviceGetAttribute(&limits.all_shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, limits.device));
  return limits;
}

Status check_sizes(const Product& product) {
  const DeviceTiles& weights = product.weights;
  const bool sized = product.groups >= 1 && weights.rows >= 1 && weights.rows < INT_MAX / 2 && weights.cols >= 32 &&
                     weights.cols % 32 == 0 && weights.cols < INT_MAX / 2 &&
                     (weights.rows + 15) / 16 * product.groups < INT_MAX / 2;
  if (!sized) return Status(Code::kUsage, "a product needs groups, rows, and a multiple of 32 columns, below 2³⁰");
  if (product.tokens < 1 || product.parts < 1 || product.parts > 2) {
    return Status(Code::kUsage, "a product takes tokens of one or two parts, not " + std::to_string(product.tokens) +
                                    " of " + std::to_string(product.parts));
  }
  if (product.output == OutputType::kGated && weights.rows % 64 != 0) {
    return Status(Code::kUsage, "a gated product needs a multiple of 64 rows, not " + std::to_string(weights.rows));
  }
  if (product.experts == nullptr && weights.count != 1 && product.groups > weights.count) {
    return Status(Code::kUsage, std::to_string(product.groups) + " groups of " + std::to_string(weights.count) +
                                    " matrices need to say which they use");
  }
  if (reinterpret_cast<uintptr_t>(product.x) % 16 != 0) return Status(Code::kUsage, "x is not 16-byte aligned");
  return Status::ok();
}

void describe(const Product& product, ProductArgs& args) {
  const DeviceTiles& weights = product.weights;
  args.tiles = weights.tiles;
  args.starts = weights.starts;
  args.x = product.x;
  args.experts = product.experts;
  args.inputs = product.inputs;
  args.y = product.y;
  args.rows = static_cast<int>(weights.rows);
  args.cols = static_cast<int>(weights.cols);
  args.row_tiles = (args.rows + kTileHeight - 1) / kTileHeight;
  args.col_tiles = (args.cols + kTileWidth - 1) / kTileWidth;
  args.whole_col_tiles = args.cols / kTileWidth;
  args.tokens = product.tokens;
  args.two_parts = product.parts - 1;
  args.n = weights.n;
  args.early = product.experts == nullptr || product.experts_settled;
  args.one_matrix = weights.count == 1;
  args.output = product.output;
  args.stage_bytes = stage_bytes(weights);
}

Status launch_product(const Product& product, cudaStream_t stream, const ProductTuning& tuning) {
  ESPALIER_TRY(check_sizes(product));
  ESPALIER_TRY(check_rows(product));
  const Result<DeviceLimits> limits = current_limits();
  if (!limits.is_ok()) return limits.status();

  ProductArgs args{};
  describe(product, args);
  const int64_t tiles = static_cast<int64_t>(args.row_tiles) * args.col_tiles * product.groups;
  const bool is_brief = tiles <= kBriefTiles * limits.value().multiprocessors;
  const ProductKernel kernel = find_kernel(product.weights.layout, product.tokens * product.parts, is_brief);
  const int most_blocks = std::min(kernel.resident, kMostBlocks) * limits.value().multiprocessors;
  args.row_blocks = (args.row_tiles + kernel.row_tiles - 1) / kernel.row_tiles;
  args.items = args.row_blocks * product.groups;
  if (product.next != nullptr && product.next->tile_bytes <= kMostPrefetch) {
    args.next = product.next->tiles;
    args.next_bytes = product.next->tile_bytes;
  }
  args.split = tuning.split > 0 ? tuning.split : choose_split(args.items, args.col_tiles, kernel.warps, most_blocks);
  if (args.split > kernel.warps || !splits(kernel.warps, args.split)) {
    return Status(Code::kUsage, "split is " + std::to_string(args.split) + ", which does not divide the " +
                                    std::to_string(kernel.warps) + " warps of a block into 1 to 15 teams");
  }
  // A stage of all warps, with its barriers.
  const int stage_total = kernel.warps * (args.stage_bytes * kernel.row_tiles + 8);
  const int fixed = kernel.sum_bytes + kernel.input_bytes;
  const int room = (limits.value().shared_of(kernel.resident) - fixed) / stage_total;
  args.stages = std::min({tuning.stages > 0 ? tuning.stages : kernel.stages, room, kMostStages});
  if (args.stages < 1) return Status(Code::kUsage, "this device has too little shared memory for the product");
  const int shared = fixed + args.stages * stage_total;

  ESPALIER_CUDA_TRY(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const int teams = kernel.warps / args.split;
  const int blocks = place_items(args, teams, most_blocks);
  args.item_step = blocks * teams;
  args.by_split = Divisor(args.split);
  args.by_row_blocks = Divisor(args.row_blocks);
  return launch("product", kernel.function,
                {dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(kernel.warps) * 32, shared}, stream, args);
}

Status launch_rows(const Product& product, bool has_wide, cudaStream_t stream) {
  const int rows = product.tokens;
  if (has_wide && rows * product.parts > kMostFewRows) return launch_wide_product(product, stream);
  Product grouped = product;
  grouped.tokens = std::min(kMostFewRows / product.parts, rows);
  grouped.groups = (rows + grouped.tokens - 1) / grouped.tokens;
  return launch_product(grouped, stream);
}

}  // namespace espalier::cuda
