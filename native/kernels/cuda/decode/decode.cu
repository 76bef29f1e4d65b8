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
constexpr int kLeastRing = 8192;

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

int splits_of(const DecodeTask& task, int multiprocessors) { return multiprocessors / task.heads.kv_heads; }

int total_bytes(const DecodeTask& task) {
  return task.hidden * static_cast<int>(sizeof(float)) + task.room.x + task.room.scratch + kRingAlignment +
         kDecodeWarps * task.room.ring;
}

// Hands out a piece of memory at a time.
class Pieces {
 public:
  explicit Pieces(void* memory) : at_(static_cast<uint8_t*>(memory)) {}
  template <class T>
  void take(T*& pointer, int64_t count) {
    pointer = reinterpret_cast<T*>(at_ + size_);
    size_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
  }
  int64_t size() const { return size_; }

 private:
  uint8_t* at_;
  int64_t size_ = 0;
};

int64_t lay_out(DecodeTask& task, void* memory, int multiprocessors) {
  const int64_t queries = static_cast<int64_t>(task.heads.heads) * task.heads.head_dim;
  Pieces pieces(memory);
  pieces.take(task.arrived, kGridCounters + task.heads.kv_heads);
  pieces.take(task.qkv, task.products[kQkv].rows);
  pieces.take(task.partials, task.heads.heads * splits_of(task, multiprocessors) * (task.heads.head_dim + 2));
  task.mixed = {nullptr, task.parts, part_stride(queries)};
  pieces.take(task.mixed.data, task.parts * task.mixed.stride);
  pieces.take(task.output, task.hidden);
  pieces.take(task.logits, task.routing.rows);
  task.gated = {nullptr, task.parts, part_stride(task.products[kGateUp].rows / 2)};
  pieces.take(task.gated.data, task.routing.top_k * task.parts * task.gated.stride);
  pieces.take(task.down, task.hidden);
  return pieces.size();
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
                    heads.kv_heads <= limits.value().multiprocessors && routing.rows <= kMostExperts &&
                    routing.top_k <= kMostChosen && task.hidden % 32 == 0;
  if (!fits) return false;
  int columns = 0;
  for (int kind = 0; kind < kDecodeProducts; ++kind) {
    DecodeProduct& product = task.products[kind];
    const int times = kind == kDown ? routing.top_k : 1;
    columns = std::max(columns, times * product.col_tiles);
    product.tile_bytes = fixed_tile_bytes(product.layout, product.slots);
    const int items = product.row_tiles * (kind == kGateUp ? routing.top_k : 1);
    product.split = choose_split(items, times * product.col_tiles, kDecodeWarps, limits.value().multiprocessors);
  }
  task.room.x = (columns * kTileWidth + 32) * task.parts * static_cast<int>(sizeof(uint16_t));
  const auto scratch = std::max(sizeof(AttendRoom), sizeof(RouterRoom) + task.hidden * sizeof(float));
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
