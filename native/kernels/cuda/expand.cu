#include <algorithm>
#include <string>

#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/expand.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_launch.h"

namespace espalier::cuda {
namespace {

constexpr int kMostStages = 3;

ExpandKernel find_kernel(TileLayout layout) {
  switch (layout) {
    case TileLayout::kDense:
    case TileLayout::kTwoFour:
    case TileLayout::kDenseInt8:
    case TileLayout::kTwoFourInt8: break;
    case TileLayout::kBalanced: return balanced_expand();
    case TileLayout::kBitmap: return bitmap_expand();
  }
  return {};
}

}  // namespace

Status expand(const ExpandTask& task, cudaStream_t stream) {
  const Product product{.weights = task.weights};
  ESPALIER_TRY(check_sizes(product));
  const ExpandKernel kernel = find_kernel(task.weights.layout);
  if (kernel.function == nullptr)
    return Status(Code::kUsage, "only n:32 and bitmap weights are expanded; others are multiplied as they are");
  if (task.first_row < 0 || task.first_row % kTileHeight != 0 || task.rows < 1 ||
      task.first_row + int64_t{task.rows} > task.weights.rows) {
    return Status(Code::kUsage, "rows " + std::to_string(task.first_row) + " and " + std::to_string(task.rows) +
                                    " more cannot be expanded: the first is a multiple of 16, the last one of " +
                                    std::to_string(task.weights.rows));
  }
  const Result<DeviceLimits> limits = current_limits();
  if (!limits.is_ok()) return limits.status();

  ExpandArgs args{};
  describe(product, args);
  args.out = task.out;
  args.first_tile = int64_t{task.first_row / kTileHeight} * args.col_tiles;
  args.tile_count = int64_t{(task.rows + kTileHeight - 1) / kTileHeight} * args.col_tiles;
  const int stage = kernel.warps * (args.stage_bytes + 8);
  args.stages = std::min(limits.value().shared_bytes / stage, kMostStages);
  if (args.stages < 1) return Status(Code::kUsage, "this device has too little shared memory to expand weights");
  const int shared = args.stages * stage;
  ESPALIER_CUDA_TRY(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const int64_t blocks = (args.tile_count + kernel.warps - 1) / kernel.warps;
  const auto grid = static_cast<unsigned>(std::min<int64_t>(blocks, limits.value().multiprocessors));
  return launch("expand", kernel.function, {dim3(grid), static_cast<unsigned>(kernel.warps) * 32, shared}, stream,
                args);
}

}  // namespace espalier::cuda
