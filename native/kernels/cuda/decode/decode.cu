// Plans the decode kernel and starts it.
#include <algorithm>

#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/decode/decode.h"
#include "kernels/cuda/decode/decode_kernel.cuh"
#include "kernels/cuda/product_launch.h"
#include "kernels/cuda/tile_bytes.h"

namespace espalier::cuda {
namespace {

// Ring of a warp that the kernel is not slowed down by.
constexpr int kLeastRing = 16384;

// Beside attention in bf16.
DecodeKernel find_bf16_kernel(TileLayout experts, bool kv_is_bf16) {
  switch (experts) {
    case TileLayout::kDense: return dense_decode(kv_is_bf16);
    case TileLayout::kTwoFour: return two_four_decode(kv_is_bf16);
    case TileLayout::kBalanced: return balanced_decode(kv_is_bf16);
    default: return nullptr;  // bitmaps have tiles of different sizes
  }
}

// Beside attention in int8.
DecodeKernel find_int8_kernel(TileLayout experts, bool kv_is_bf16) {
  switch (experts) {
    case TileLayout::kDenseInt8: return dense_int8_decode(kv_is_bf16);
    case TileLayout::kTwoFourInt8: return two_four_int8_decode(kv_is_bf16);
    default: return nullptr;
  }
}

DecodeKernel find_kernel(const DecodeTask& task) {
  const auto& products = task.products;
  const TileLayout attention = products[kQkv].layout;
  const TileLayout experts = products[kGateUp].layout;
  if (products[kOutput].layout != attention || products[kDown].layout != experts) return nullptr;
  if (attention == TileLayout::kDense) return find_bf16_kernel(experts, task.kv_is_bf16);
  if (attention == TileLayout::kDenseInt8) return find_int8_kernel(experts, task.kv_is_bf16);
  return nullptr;
}

int total_bytes(const DecodeTask& task) {
  return task.hidden * static_cast<int>(sizeof(float)) + task.room.x + task.room.scratch + kRingAlignment +
         kDecodeWarps * task.room.ring + bytes_beyond(task.products[kGateUp].layout);
}

// Lays a copy of the words behind the one count that there is of them.
int64_t lay_out(DecodeTask& task, void* memory, int multiprocessors) {
  constexpr int kAligned = 64;  // words
  task.layers_done = static_cast<uint32_t*>(memory);
  int64_t size = kAligned;
  const auto take = [&](uint32_t*& words, int64_t count) {
    words = static_cast<uint32_t*>(memory) + size;
    size += (count + kAligned - 1) / kAligned * kAligned;
  };
  const HeadShape& heads = task.heads;
  const auto rows = [&](int kind) { return static_cast<int64_t>(task.products[kind].row_tiles) * kTileHeight; };
  take(task.words.qkv, rows(kQkv));
  take(task.words.partials, heads.heads * (multiprocessors / heads.kv_heads) * (heads.head_dim + 4));
  take(task.words.mixed, static_cast<int64_t>(heads.heads) * heads.head_dim);
  take(task.words.output, rows(kOutput));
  take(task.words.logits, task.routing.rows);
  take(task.words.blocks, multiprocessors);
  take(task.words.gated, task.routing.top_k * rows(kGateUp) / 2);
  take(task.words.down, rows(kDown));
  task.copy_size = size - kAligned;
  return (size + task.copy_size) * static_cast<int64_t>(sizeof(uint32_t));
}

}  // namespace

int64_t decode_bytes(const DecodeTask& task, int multiprocessors) {
  DecodeTask copy = task;
  return lay_out(copy, nullptr, multiprocessors);
}

void place_decode(DecodeTask& task, void* memory, int multiprocessors) { lay_out(task, memory, multiprocessors); }

bool plan_decode(DecodeTask& task) {
  const Result<DeviceLimits> limits = current_limits();
  const HeadShape& heads = task.heads;
  const RouteTask& routing = task.routing;
  const bool fits = limits.is_ok() && find_kernel(task) != nullptr && heads.head_dim <= kDecodeDim &&
                    heads.head_dim % 4 == 0 && heads.heads / heads.kv_heads <= kDecodeHeads &&
                    routing.rows <= kMostExperts && routing.top_k <= kMostChosen && task.hidden % 32 == 0;
  if (!fits) return false;
  const int multiprocessors = limits.value().multiprocessors;
  if (heads.kv_heads > multiprocessors || multiprocessors > kDecodeThreads) return false;
  int columns = 0;
  for (int kind = 0; kind < kDecodeProducts; ++kind) {
    DecodeProduct& product = task.products[kind];
    const int times = kind == kDown ? routing.top_k : 1;
    columns = std::max(columns, times * product.col_tiles);
    product.tile_bytes = fixed_tile_bytes(product.layout, product.n);
    const int items = product.row_tiles * (kind == kGateUp ? routing.top_k : 1);
    product.by_columns = Divisor(product.col_tiles);
    product.split = choose_split(items, times * product.col_tiles, kDecodeWarps, multiprocessors);
  }
  task.room.x = (columns * kTileWidth + 32) * task.parts * static_cast<int>(sizeof(uint16_t));
  const auto scratch =
      std::max({sizeof(AttendRoom), sizeof(MergeRoom), sizeof(RouterRoom) + task.hidden * sizeof(float)});
  task.room.scratch = static_cast<int>((scratch + 127) / 128 * 128);
  task.room.ring = 0;
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, find_kernel(task)) != cudaSuccess) return false;
  const int left = limits.value().shared_bytes - static_cast<int>(attributes.sharedSizeBytes) - total_bytes(task);
  task.room.ring = left / kDecodeWarps / kRingAlignment * kRingAlignment;
  return task.room.ring >= kLeastRing;
}

Status launch_decode(const DecodeTask& task, cudaStream_t stream) {
  const Result<DeviceLimits> limits = current_limits();
  if (!limits.is_ok()) return limits.status();
  const DecodeKernel kernel = find_kernel(task);
  const int shared = total_bytes(task);
  ESPALIER_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(limits.value().multiprocessors));
  config.blockDim = dim3(kDecodeBlock);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  // Its blocks wait for each other: none may be left outside.
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  config.attrs = &together;
  config.numAttrs = 1;
  return to_status(cudaLaunchKernelEx(&config, kernel, task), "decode");
}

}  // namespace espalier::cuda
