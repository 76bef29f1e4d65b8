// Starts products of many tokens.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <string>

#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/product_launch.h"
#include "kernels/cuda/wide.cuh"

namespace espalier::cuda {
namespace {

constexpr int kMostStages = 16;
constexpr int kMostSplit = 8;

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

// The driver's cuTensorMapEncodeTiled, which programs do not link with.
Result<decltype(&cuTensorMapEncodeTiled)> tensor_encoder() {
  static void* found = nullptr;
  static const cudaError_t error = [] {
    cudaDriverEntryPointQueryResult answer{};
    const cudaError_t asked =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &answer);
    return asked == cudaSuccess && answer != cudaDriverEntryPointSuccess ? cudaErrorSymbolNotFound : asked;
  }();
  ESPALIER_TRY(to_status(error, "looking for cuTensorMapEncodeTiled"));
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

// x as a tensor of [rows][parts][cols], of which a copy takes 64 inputs of one part of `box` rows.
Status describe_x(const Product& product, int box, CUtensorMap& out) {
  const auto encode = tensor_encoder();
  if (!encode.is_ok()) return encode.status();
  const auto cols = static_cast<cuuint64_t>(product.weights.cols);
  const auto parts = static_cast<cuuint64_t>(product.parts);
  const auto rows = static_cast<cuuint64_t>(product.groups) * static_cast<cuuint64_t>(product.tokens);
  const cuuint64_t sizes[] = {cols, parts, rows};
  const cuuint64_t strides[] = {cols * 2, parts * cols * 2};
  const cuuint32_t boxes[] = {kWideInputs, 1, static_cast<cuuint32_t>(box)};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result =
      encode.value()(&out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<uint16_t*>(product.x), sizes, strides, boxes,
                     steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return Status::ok();
  return Status(Code::kDevice, "cuTensorMapEncodeTiled failed: error " + std::to_string(static_cast<int>(result)));
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

// Stages of both rings that fit, as deep as each other in inputs; returns the bytes of shared memory, 0 if too few fit.
int choose_stages(WideArgs& args, int x_bytes, int shared_bytes) {
  const int weight_bytes = kWideRowTiles * args.stage_bytes;
  const int room = shared_bytes - 4 * kMostStages * 8;
  const int x_each = 2 * x_bytes * (1 + args.two_parts);
  args.stages = std::clamp(room / (weight_bytes + x_each), 2, kMostStages);
  args.x_stages = std::min((room - args.stages * weight_bytes) / x_bytes, kMostStages);
  // Where a third tile takes nothing from x.
  if (args.stages == 2 && room - args.x_stages * x_bytes >= 3 * weight_bytes) args.stages = 3;
  if (args.x_stages < 3) return 0;
  return args.stages * weight_bytes + args.x_stages * x_bytes + (args.stages + args.x_stages) * 16;
}

// How many blocks share the inputs of an item: as many as find their place at the same time.
Result<int> choose_split(const WideArgs& args, const WideKernel& kernel, const DeviceLimits& limits, int shared) {
  int best = 1;
  for (int split = 2; split <= kMostSplit && split <= args.col_tiles; ++split) {
    if (args.items * split > limits.multiprocessors * kernel.resident) break;
    const Result<int> fit = clusters_that_fit(kernel, limits, shared, split);
    if (!fit.is_ok()) return fit.status();
    if (args.items > fit.value()) break;
    best = split;
  }
  return best;
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
  const WideKernel kernel = find_kernel(product.weights.layout, product.tokens);

  WideArgs args{};
  describe(product, args);
  args.split = 1;
  args.mates = 1;
  args.token_blocks = (product.tokens + kernel.tokens - 1) / kernel.tokens;
  const int row_blocks = (args.row_tiles + kWideRowTiles - 1) / kWideRowTiles;
  args.items = product.groups * args.token_blocks * row_blocks;
  // Of a multiprocessor's memory every block takes 1 KiB beside its own.
  const int room = std::min(limits.value().shared_bytes, limits.value().all_shared_bytes / kernel.resident - 1024);
  const int shared = choose_stages(args, kernel.tokens * kWideInputs * 2, room);
  if (shared == 0) return Status(Code::kUsage, "this device has too little shared memory for the product");
  ESPALIER_CUDA_TRY(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  if (tuning.split > 0) {
    args.split = tuning.split;
  } else {
    const Result<int> split = choose_split(args, kernel, limits.value(), shared);
    if (!split.is_ok()) return split.status();
    args.split = split.value();
  }
  if (args.split == 1) args.mates = tuning.mates > 0 ? tuning.mates : row_blocks > 1 ? 2 : 1;
  args.row_groups = (row_blocks + args.mates - 1) / args.mates;
  args.items = product.groups * args.token_blocks * args.row_groups;

  const int cluster = args.mates * args.split;
  const Result<int> fit = clusters_that_fit(kernel, limits.value(), shared, cluster);
  if (!fit.is_ok()) return fit.status();
  if (args.split > 1 && args.items > fit.value()) {
    return Status(Code::kUsage, "a product of " + std::to_string(args.items) + " items cannot be split into " +
                                    std::to_string(args.split));
  }
  CUtensorMap x;
  ESPALIER_TRY(describe_x(product, kernel.tokens / args.mates, x));
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};
  set_shape(config, attributes, std::min(args.items, fit.value()), cluster);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  ESPALIER_CUDA_TRY(cudaLaunchKernelEx(&config, kernel.function, args, x));
  return Status::ok();
}

}  // namespace espalier::cuda
