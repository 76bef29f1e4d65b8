// Starts products of many tokens.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <string>

#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/product_launch.h"
#include "kernels/cuda/wide_expanded.cuh"
#include "kernels/cuda/wide_rings.h"
#include "kernels/cuda/wide_tensors.h"

namespace espalier::cuda {
namespace {

WideKernel find_kernel(TileLayout layout, int tokens) {
  switch (layout) {
    case TileLayout::kDense: return dense_wide(tokens);
    case TileLayout::kTwoFour: return two_four_wide(tokens);
    case TileLayout::kBalanced: return balanced_wide(tokens);
    case TileLayout::kBitmap: return bitmap_wide(tokens);
    case TileLayout::kDenseInt8: return dense_int8_wide(tokens);
    case TileLayout::kTwoFourInt8: return two_four_int8_wide(tokens);
  }
  return {};
}

// Of the layouts of takes_expanded().
WideKernel expanded_kernel(TileLayout layout) {
  return layout == TileLayout::kBitmap ? bitmap_expanded() : balanced_expanded();
}

RingSizes ring_sizes(const WideKernel& kernel, const WideArgs& args) {
  return {.x_bytes = kernel.tokens * kWideInputs * 2,
          .weight_bytes = kWideRowTiles * args.stage_bytes,
          .parts = 1 + args.two_parts,
          .by_rows = kernel.by_rows,
          .loads_ahead = kernel.resident == 1};
}

// Whether sums go out through shared memory, where the blocks of x that they keep leave enough of them for the first
// products of the next item, and the copy engine can address y.
bool is_staged(const Product& product, const WideKernel& kernel, const WideArgs& args) {
  const int first = ring_sizes(kernel, args).least_blocks();
  const int multiple = product.output == OutputType::kF32 ? 4 : 8;
  return kernel.can_stage && args.split == 1 && args.x_stages >= kStagedBlocks + first &&
         product.weights.rows % multiple == 0 && reinterpret_cast<uintptr_t>(product.y) % 16 == 0;
}

void set_shape(cudaLaunchConfig_t& config, cudaLaunchAttribute (&attributes)[2], int clusters, int cluster) {
  config.gridDim = dim3(static_cast<unsigned>(clusters * cluster));
  config.blockDim = dim3(kWideThreads);
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
}

// Clusters of so many blocks that run at the same time: fewer than fill the device where a cluster does not find its
// place. The same for all kernels that have as many blocks a multiprocessor, since they fill it.
Result<int> clusters_that_fit(const WideKernel& kernel, const DeviceLimits& limits, int shared, int cluster) {
  constexpr int kDevices = 64;
  static std::array<std::array<std::array<std::atomic<int>, kMostSplit + 1>, 3>, kDevices> known{};
  std::atomic<int>* entry = limits.device < kDevices
                                ? &known[static_cast<size_t>(limits.device)][static_cast<size_t>(kernel.resident)]
                                        [static_cast<size_t>(cluster)]
                                : nullptr;
  if (entry != nullptr && entry->load() > 0) return entry->load();
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};
  set_shape(config, attributes, 1, cluster);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  int count = 0;
  ESPALIER_CUDA_TRY(cudaOccupancyMaxActiveClusters(&count, kernel.function, &config));
  if (entry != nullptr) entry->store(count);
  return count;
}

// Stages of both rings that fit; returns the bytes of shared memory, 0 if too few fit.
int choose_stages(WideArgs& args, const WideKernel& kernel, int shared_bytes) {
  const RingSizes sizes = ring_sizes(kernel, args);
  const Rings rings = choose_rings(sizes, shared_bytes - 4 * kMostRingStages * 8);
  if (rings.x_stages == 0) return 0;
  args.stages = rings.stages;
  args.x_stages = rings.x_stages;
  return rings.stages * sizes.weight_bytes + rings.x_stages * sizes.x_bytes + (rings.stages + rings.x_stages) * 16;
}

// A product on its way to the device.
struct WideLaunch {
  const Product& product;
  WideKernel kernel;
  DeviceLimits limits;
  int shared = 0;
};

// Row blocks of a launch, and its clusters: of blocks with different rows, or of such that split the inputs.
struct WideRange {
  int first = 0;
  int count = 0;
  int mates = 1;
  int split = 1;
};

// How many blocks share the inputs of an item: as many as find their place at the same time.
Result<int> choose_split(const WideLaunch& launch, int items, int col_tiles) {
  int best = 1;
  for (int split = 2; split <= kMostSplit && split <= col_tiles; ++split) {
    if (items * split > launch.limits.multiprocessors * launch.kernel.resident) break;
    const Result<int> fit = clusters_that_fit(launch.kernel, launch.limits, launch.shared, split);
    if (!fit.is_ok()) return fit.status();
    if (items > fit.value()) break;
    best = split;
  }
  return best;
}

// The row blocks that would leave most of the device idle in the last round of `all`, of one matrix: mates split their
// inputs instead. None where that is not worth it.
Result<WideRange> find_tail(const WideLaunch& launch, const WideArgs& args, const WideRange& all) {
  constexpr int kLeastSaved = 8;  // tiles of an item
  const Result<int> fit = clusters_that_fit(launch.kernel, launch.limits, launch.shared, all.mates);
  if (!fit.is_ok()) return fit.status();
  const int row_groups = (all.count + all.mates - 1) / all.mates;
  const int rounds = row_groups * args.token_blocks / fit.value();
  const int first = rounds * fit.value() / args.token_blocks * all.mates;
  if (first == 0 || first >= all.count || (all.count - first) * args.token_blocks > fit.value()) return WideRange{};
  if (args.col_tiles - (args.col_tiles + all.mates - 1) / all.mates < kLeastSaved) return WideRange{};
  return WideRange{.first = first, .count = all.count - first};
}

WideItems items_of(const WideLaunch& launch, const WideArgs& args, int row_groups) {
  if (row_groups == 0) return {};
  const int rest = row_groups % kWideBand;
  const int each = row_groups * args.token_blocks;
  return {.count = launch.product.groups * each,
          .each = each,
          .row_groups = row_groups,
          .by_each = Divisor(each),
          .by_rest = Divisor(rest == 0 ? kWideBand : rest)};
}

// Whole items of some row blocks, and split ones of others; either may be empty.
Status start(const WideLaunch& launch, WideArgs args, const WideRange& whole, const WideRange& split,
             cudaStream_t stream) {
  args.mates = whole.count > 0 ? whole.mates : 1;
  args.split = whole.count > 0 ? 1 : split.split;
  args.by_band = Divisor(kWideBand * args.token_blocks);
  args.whole = items_of(launch, args, (whole.count + args.mates - 1) / args.mates);
  args.parted = items_of(launch, args, split.count);
  args.parted_row_tile = split.first * kWideRowTiles;
  const int cluster = args.mates * args.split;
  const Result<int> fit = clusters_that_fit(launch.kernel, launch.limits, launch.shared, cluster);
  if (!fit.is_ok()) return fit.status();
  if (args.parted.count > fit.value()) {
    return Status(Code::kUsage, "a product of " + std::to_string(args.parted.count) + " items cannot be split into " +
                                    std::to_string(cluster));
  }
  args.staged = is_staged(launch.product, launch.kernel, args);
  if (args.staged) ESPALIER_TRY(describe_y(launch.product, launch.kernel.tokens / 2, args.y_tensor));
  CUtensorMap x;
  ESPALIER_TRY(describe_x(launch.product, launch.kernel.tokens / args.mates, x));
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};
  set_shape(config, attributes, std::min(args.whole.count + args.parted.count, fit.value()), cluster);
  config.dynamicSmemBytes = static_cast<size_t>(launch.shared);
  config.stream = stream;
  ESPALIER_CUDA_TRY(cudaLaunchKernelEx(&config, launch.kernel.function, args, x));
  return Status::ok();
}

Status start_all(const WideLaunch& launch, const WideArgs& args, const WideTuning& tuning, const WideRange& all,
                 cudaStream_t stream) {
  if (all.split > 1) return start(launch, args, {}, all, stream);
  WideRange whole = all;
  WideRange tail;
  if (tuning.split == 0 && launch.product.groups == 1) {
    const Result<WideRange> found = find_tail(launch, args, all);
    if (!found.is_ok()) return found.status();
    tail = found.value();
    whole.count -= tail.count;
  }
  return start(launch, args, whole, tail, stream);
}

// Shared memory of a block, of which it has some beside the rings.
Status choose_memory(WideLaunch& launch, WideArgs& args, int beside) {
  const WideKernel& kernel = launch.kernel;
  const int more = beside > 0 ? beside + kBeside : 0;
  const int rings = choose_stages(args, kernel, launch.limits.shared_of(kernel.resident) - more);
  if (rings == 0) return Status(Code::kUsage, "this device has too little shared memory for the product");
  launch.shared = rings + more;
  ESPALIER_CUDA_TRY(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared));
  return Status::ok();
}

Status choose_clusters(const WideLaunch& launch, const WideArgs& args, const WideTuning& tuning, WideRange& all) {
  const int items = launch.product.groups * args.token_blocks * all.count;
  const Result<int> split = tuning.split > 0 ? Result<int>(tuning.split) : choose_split(launch, items, args.col_tiles);
  if (!split.is_ok()) return split.status();
  all.split = split.value();
  if (all.split > 1) return Status::ok();
  all.mates = tuning.mates > 0 ? tuning.mates : all.count > 1 ? 2 : 1;
  if (tuning.mates > 0 || launch.product.groups > 1 || args.token_blocks > 1 || launch.kernel.tokens < 256) {
    return Status::ok();
  }
  // Nobody else reads these weights; more mates read x less often.
  constexpr int kMostMates = 4;
  const Result<int> fit = clusters_that_fit(launch.kernel, launch.limits, launch.shared, kMostMates);
  if (!fit.is_ok()) return fit.status();
  if (all.count >= kMostMates && (all.count + kMostMates - 1) / kMostMates <= fit.value()) all.mates = kMostMates;
  return Status::ok();
}

// Row tiles that are under way at the same time, see WideWalk.
Result<int> rows_at_a_time(const WideLaunch& launch, const WideArgs& args, const WideRange& all) {
  const Result<int> fit = clusters_that_fit(launch.kernel, launch.limits, launch.shared, all.mates * all.split);
  if (!fit.is_ok()) return fit.status();
  const int band = kWideBand * args.token_blocks;
  const int row_groups = fit.value() / band * kWideBand + std::min(fit.value() % band, kWideBand);
  return std::min(row_groups * all.mates * kWideRowTiles, args.row_tiles);
}

}  // namespace

bool has_wide_products(int device) {
  int major = 0;
  int minor = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 &&
         minor == 0;
}

Status launch_wide_product(const Product& product, cudaStream_t stream, const WideTuning& tuning) {
  ESPALIER_TRY(check_sizes(product));
  if (product.inputs != nullptr) return Status(Code::kUsage, "a product of many tokens takes rows of x in order");
  const Result<DeviceLimits> limits = current_limits();
  if (!limits.is_ok()) return limits.status();
  WideLaunch launch{product, find_kernel(product.weights.layout, product.tokens), limits.value()};

  WideArgs args{};
  describe(product, args);
  if (launch.kernel.by_rows) {
    args.stage_bytes = kRowStageBytes / kWideRowTiles;
    ESPALIER_TRY(
        describe_weights(product.weights.tiles, product.weights.count, args.row_tiles, args.col_tiles, args.tensor));
  }
  args.token_blocks = (product.tokens + launch.kernel.tokens - 1) / launch.kernel.tokens;
  ESPALIER_TRY(choose_memory(launch, args, launch.kernel.operand_bytes));

  WideRange all{0, (args.row_tiles + kWideRowTiles - 1) / kWideRowTiles};
  ESPALIER_TRY(choose_clusters(launch, args, tuning, all));
  return start_all(launch, args, tuning, all, stream);
}

bool takes_expanded(const Product& product) {
  const TileLayout layout = product.weights.layout;
  return product.weights.count == 1 && product.groups == 1 && product.experts == nullptr && product.inputs == nullptr &&
         (layout == TileLayout::kBalanced || layout == TileLayout::kBitmap);
}

int64_t expansion_tiles(const DeviceTiles& weights) {
  return (weights.rows + kTileHeight - 1) / kTileHeight * ((weights.cols + kTileWidth - 1) / kTileWidth);
}

Status launch_expanded_product(const Product& product, int rows, const ExpansionRoom& room, cudaStream_t stream) {
  ESPALIER_TRY(check_sizes(product));
  if (!takes_expanded(product)) {
    return Status(Code::kUsage,
                  "a product that expands weights on the way takes one n:32 or bitmap matrix and rows of x in order");
  }
  if (rows < 1 || rows > product.weights.rows || (rows % kExpandedItemRows != 0 && rows != product.weights.rows)) {
    return Status(Code::kUsage, "a product computes all " + std::to_string(product.weights.rows) +
                                    " rows, or the first of them by 128, not " + std::to_string(rows));
  }
  const int64_t tiles = expansion_tiles(product.weights);
  if (tiles > room.tiles) {
    return Status(Code::kUsage, "there is room for " + std::to_string(room.tiles) + " expanded tiles, not for " +
                                    std::to_string(tiles));
  }
  const Result<DeviceLimits> limits = current_limits();
  if (!limits.is_ok()) return limits.status();
  WideLaunch launch{product, expanded_kernel(product.weights.layout), limits.value()};

  WideArgs args{};
  describe(product, args);
  args.expand_bytes = args.stage_bytes;
  args.stage_bytes = kRowStageBytes / kWideRowTiles;
  args.expanded = room.expanded;
  args.progress = room.progress;
  args.early = false;
  ESPALIER_TRY(describe_matrix(room.expanded, int64_t{args.row_tiles} * kTileHeight,
                               int64_t{args.col_tiles} * kTileWidth, args.tensor));
  args.token_blocks = (product.tokens + launch.kernel.tokens - 1) / launch.kernel.tokens;
  ESPALIER_TRY(choose_memory(launch, args, kExpanders * expander_bytes(launch.kernel.expand_batch, args.expand_bytes)));

  WideRange all{0, (rows + kExpandedItemRows - 1) / kExpandedItemRows};
  ESPALIER_TRY(choose_clusters(launch, args, {}, all));
  const Result<int> expand_rows = rows_at_a_time(launch, args, all);
  if (!expand_rows.is_ok()) return expand_rows.status();
  args.expand_row_tiles = expand_rows.value();
  return start_all(launch, args, {}, all, stream);
}

}  // namespace espalier::cuda
