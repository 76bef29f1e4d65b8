// The rows that products of the decode kernel multiply, in shared memory: sums of bf16 parts. The functions are not
// inlined: a layer's code should stay in the cache of instructions.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/decode/context.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {

// Elements from one part of x to the next: the lanes of a product that read the two use different banks.
__device__ __forceinline__ int x_stride(int columns) { return columns * kTileWidth + 32; }

// Four neighbours as parts, in shared memory.
__device__ __forceinline__ void store_four(uint16_t* to, int parts, int stride, float4 value) {
  for (int part = 0; part < parts; ++part) {
    const __nv_bfloat162 low = __floats2bfloat162_rn(value.x, value.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(value.z, value.w);
    *reinterpret_cast<uint2*>(to + part * stride) = {reinterpret_cast<const uint32_t&>(low),
                                                     reinterpret_cast<const uint32_t&>(high)};
    // Infinity stays infinity.
    value.x = isinf(value.x) ? 0.0f : value.x - __low2float(low);
    value.y = isinf(value.y) ? 0.0f : value.y - __high2float(low);
    value.z = isinf(value.z) ? 0.0f : value.z - __low2float(high);
    value.w = isinf(value.w) ? 0.0f : value.w - __high2float(high);
  }
}

// The sum over all computing warps; `scratch` as block_sum's.
__device__ __forceinline__ float worker_sum(float value, float* scratch) {
  const int lane = threadIdx.x % 32;
  value = warp_sum(value);
  if (lane == 0) scratch[threadIdx.x / 32] = value;
  sync_workers();
  return warp_sum(lane < kDecodeWarps ? scratch[lane] : 0.0f);
}

// Adds to the residual stream, a copy of which is in each block's shared memory, and norms it.
struct DecodeNorm {
  float* residual;
  const float* source;  // null: nothing is added
  const float* bias;    // or null
  const float* weight;
  uint16_t* x;    // becomes the parts of the norm, with zeros behind them
  float* floats;  // becomes the norm, or null
};

inline __device__ __noinline__ void add_and_norm(const DecodeTask& task, const DecodeNorm& norm) {
  __shared__ float scratch[32];
  const int fours = task.hidden / 4;
  auto* residual = reinterpret_cast<float4*>(norm.residual);
  const auto* weights = reinterpret_cast<const float4*>(norm.weight);
  const float4 first_weight = static_cast<int>(threadIdx.x) < fours ? __ldg(weights + threadIdx.x) : float4{};
  float squares = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < fours; i += kDecodeThreads) {
    float4 value = residual[i];
    if (norm.source != nullptr) {
      const float4 added = __ldcg(reinterpret_cast<const float4*>(norm.source) + i);
      const float4 bias = norm.bias != nullptr ? __ldg(reinterpret_cast<const float4*>(norm.bias) + i) : float4{};
      value = {value.x + (added.x + bias.x), value.y + (added.y + bias.y), value.z + (added.z + bias.z),
               value.w + (added.w + bias.w)};
      residual[i] = value;
    }
    squares += value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w;
  }
  const float mean = __fdividef(worker_sum(squares, scratch), static_cast<float>(task.hidden));
  const float scale = __frsqrt_rn(mean + task.epsilon);
  const int columns = task.products[kQkv].col_tiles;
  const int stride = x_stride(columns);
#pragma unroll 1
  for (int i = threadIdx.x; i < columns * kTileWidth / 4; i += kDecodeThreads) {
    float4 value{};
    if (i < fours) {
      const float4 w = i < kDecodeThreads ? first_weight : __ldg(weights + i);
      value = residual[i];
      value = {value.x * scale * w.x, value.y * scale * w.y, value.z * scale * w.z, value.w * scale * w.w};
      if (norm.floats != nullptr) reinterpret_cast<float4*>(norm.floats)[i] = value;
    }
    store_four(norm.x + 4 * i, task.parts, stride, value);
  }
  sync_workers();
}

// x becomes `rows` rows that lie in global memory, each with zeros behind it up to whole tiles.
inline __device__ __noinline__ void load_x(uint16_t* x, const PartRows& from, int rows, int columns) {
  const int stride = x_stride(rows * columns);
  const int eights = columns * kTileWidth / 8;
  const int lines = rows * from.parts;
  // Loads that do not wait for each other.
  constexpr int kAhead = 3;
#pragma unroll 1
  for (int first = threadIdx.x; first < eights * lines; first += kAhead * kDecodeThreads) {
    uint4 values[kAhead];
    int to[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = first + j * kDecodeThreads;
      const int line = i / eights;
      const int at = (i - line * eights) * 8;
      const int row = from.parts == 2 ? line / 2 : line;
      values[j] = line < lines && at < from.stride
                      ? __ldcg(reinterpret_cast<const uint4*>(from.data + line * from.stride + at))
                      : uint4{};
      to[j] = line < lines ? (line - row * from.parts) * stride + row * columns * kTileWidth + at : -1;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (to[j] >= 0) *reinterpret_cast<uint4*>(x + to[j]) = values[j];
    }
  }
  sync_workers();
}

}  // namespace espalier::cuda
