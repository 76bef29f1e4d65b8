// The rows that products of the decode kernel multiply, in shared memory: sums of bf16 parts.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/decode/context.cuh"
#include "kernels/cuda/decode/words.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {

// Elements from one part of x to the next: the lanes of a product that read the two use different banks.
__device__ __forceinline__ int x_stride(int columns) { return columns * kTileWidth + 32; }

// Four neighbours as parts, in shared memory.
__device__ __forceinline__ void store_four(uint16_t* to, int parts, int stride, float4 value) {
  const auto pair = [](float x, float y) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(x, y);
    return reinterpret_cast<const uint32_t&>(both);
  };
  // Infinity stays infinity.
  const auto rest = [](float x, uint32_t high) {
    const float left = x - __uint_as_float(high);
    return left == left ? left : 0.0f;
  };
  const uint2 high{pair(value.x, value.y), pair(value.z, value.w)};
  *reinterpret_cast<uint2*>(to) = high;
  if (parts == 1) return;
  *reinterpret_cast<uint2*>(to + stride) = {pair(rest(value.x, high.x << 16), rest(value.y, high.x & 0xffff0000u)),
                                            pair(rest(value.z, high.y << 16), rest(value.w, high.y & 0xffff0000u))};
}

// The sum over all computing warps; `scratch` as block_sum's.
__device__ __forceinline__ float worker_sum(float value, float* scratch) {
  const int lane = threadIdx.x % 32;
  value = warp_sum(value);
  if (lane == 0) scratch[threadIdx.x / 32] = value;
  sync_workers();
  float sum = scratch[lane % kDecodeWarps];
#pragma unroll
  for (int distance = kDecodeWarps / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return sum;
}

// Adds to the residual stream, a copy of which is in each block's shared memory, and norms it.
struct DecodeNorm {
  float* residual;
  const uint32_t* source;  // words; null: nothing is added
  uint32_t mark;           // of theirs
  const float* bias;       // or null
  const float* weight;
  uint16_t* x;    // becomes the parts of the norm, with zeros behind them
  float* floats;  // becomes the norm, or null
};

__device__ __forceinline__ void add_and_norm(const DecodeTask& task, const DecodeNorm& norm) {
  __shared__ float scratch[32];
  constexpr int kAhead = 4;
  const int thread = static_cast<int>(threadIdx.x);
  const int fours = task.hidden / 4;
  auto* residual = reinterpret_cast<float4*>(norm.residual);
  const auto* weights = reinterpret_cast<const float4*>(norm.weight);
  float4 first_weights[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int i = thread + j * kDecodeThreads;
    first_weights[j] = i < fours ? __ldg(weights + i) : float4{};
  }
  float squares = 0;
#pragma unroll 1
  for (int first = 0; first < fours; first += kAhead * kDecodeThreads) {
    uint4 words[kAhead] = {};
    if (norm.source != nullptr) {
      await_words(norm.mark, words, [&](int j) {
        const int i = first + thread + j * kDecodeThreads;
        return i < fours ? norm.source + 4 * i : nullptr;
      });
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = first + thread + j * kDecodeThreads;
      if (i >= fours) continue;
      const float4 added = value_of(words[j]);
      const float4 bias = norm.bias != nullptr ? __ldg(reinterpret_cast<const float4*>(norm.bias) + i) : float4{};
      float4 value = residual[i];
      value = {value.x + (added.x + bias.x), value.y + (added.y + bias.y), value.z + (added.z + bias.z),
               value.w + (added.w + bias.w)};
      residual[i] = value;
      squares += value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w;
    }
  }
  const float mean = __fdividef(worker_sum(squares, scratch), static_cast<float>(task.hidden));
  const float scale = __frsqrt_rn(mean + task.epsilon);
  const int columns = task.products[kQkv].col_tiles;
  const int stride = x_stride(columns);
  const int all = columns * kTileWidth / 4;
  const auto scaled = [&](int i, const float4& weight) {
    float4 value{};
    if (i < fours) {
      value = residual[i];
      value = {value.x * scale * weight.x, value.y * scale * weight.y, value.z * scale * weight.z,
               value.w * scale * weight.w};
      if (norm.floats != nullptr) reinterpret_cast<float4*>(norm.floats)[i] = value;
    }
    store_four(norm.x + 4 * i, task.parts, stride, value);
  };
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int i = thread + j * kDecodeThreads;
    if (i < all) scaled(i, first_weights[j]);
  }
#pragma unroll 1
  for (int i = thread + kAhead * kDecodeThreads; i < all; i += kDecodeThreads) {
    scaled(i, i < fours ? __ldg(weights + i) : float4{});
  }
  sync_workers();
}

// Rows of words of parts, one behind the other; `width`, of a row, is a multiple of 4.
struct WordRows {
  const uint32_t* words;
  uint32_t mark;
  int rows;
  int width;
};

// x becomes the parts of the rows, each with zeros behind it up to whole tiles. A warp takes the 128 words of a tile.
__device__ __forceinline__ void load_x(const DecodeTask& task, uint16_t* x, const WordRows& from,
                                       const DecodeProduct& product) {
  static_assert(kTileWidth == 4 * 32);
  constexpr int kAhead = 6;
  const int at = threadIdx.x % 32 * 4;
  const int tiles = from.rows * product.col_tiles;
  const int stride = x_stride(tiles);
#pragma unroll 1
  for (int first = threadIdx.x / 32; first < tiles; first += kAhead * kDecodeWarps) {
    uint4 words[kAhead];
    await_words(from.mark, words, [&](int j) {
      const int tile = first + j * kDecodeWarps;
      const int row = product.by_columns.divide(tile);
      const int column = (tile - row * product.col_tiles) * kTileWidth + at;
      return tile < tiles && column < from.width ? from.words + row * from.width + column : nullptr;
    });
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int tile = first + j * kDecodeWarps;
      if (tile >= tiles) break;
      uint16_t* const to = x + tile * kTileWidth + at;
      const uint4& four = words[j];
      *reinterpret_cast<uint2*>(to) = {part_of<0>(four.x, four.y), part_of<0>(four.z, four.w)};
      if (task.parts == 1) continue;
      *reinterpret_cast<uint2*>(to + stride) = {part_of<1>(four.x, four.y), part_of<1>(four.z, four.w)};
    }
  }
  sync_workers();
}

}  // namespace espalier::cuda
