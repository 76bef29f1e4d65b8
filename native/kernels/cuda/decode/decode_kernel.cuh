// The decode kernel: the warps of a block that compute, and the one that fetches for them.
#pragma once

#include "kernels/cuda/decode/decoder.cuh"
#include "kernels/cuda/ptx/warpgroup.cuh"

namespace espalier::cuda {

// Of a thread: at first all have as many, then those that fetch give some to those that compute.
inline constexpr int kDecodeRegisters = 208;
inline constexpr int kFetchRegisters = 80;
static_assert(kDecodeThreads * kDecodeRegisters + 128 * kFetchRegisters <= kDecodeBlock * 168);

template <class AttentionTile, class ExpertTile, class T>
__global__ void __launch_bounds__(kDecodeBlock, 1) decode_kernel(const __grid_constant__ DecodeTask task) {
  extern __shared__ __align__(128) uint8_t dynamic[];
  __shared__ DecodeContext context;
  __shared__ DecodeSums sums;
  const SharedMemory shared(task, dynamic);
  begin_decode(task, shared, context);
  if (threadIdx.x < kDecodeThreads) {
    ptx::take_registers<kDecodeRegisters>();
    Decoder<AttentionTile, ExpertTile, T>(task, shared, context, sums).run();
    return;
  }
  ptx::give_registers<kFetchRegisters>();
  const int warp = threadIdx.x - kDecodeThreads;
  if (warp < kDecodeWarps) TileFetcher(task, context, warp, shared.ring(task, warp)).run();
}

using DecodeKernel = void (*)(DecodeTask);

template <class AttentionTile, class ExpertTile>
DecodeKernel choose_decode(bool kv_is_bf16) {
  return kv_is_bf16 ? &decode_kernel<AttentionTile, ExpertTile, __nv_bfloat16>
                    : &decode_kernel<AttentionTile, ExpertTile, float>;
}

// The kernels of each layout of experts, beside dense attention of the same kind of values.
DecodeKernel dense_decode(bool kv_is_bf16);
DecodeKernel two_four_decode(bool kv_is_bf16);
DecodeKernel balanced_decode(bool kv_is_bf16);
DecodeKernel dense_int8_decode(bool kv_is_bf16);
DecodeKernel two_four_int8_decode(bool kv_is_bf16);

}  // namespace espalier::cuda
