// The dispatch table of one instruction set, made of what the headers before this one define.
#pragma once

#include "kernels/cpu/attend_inl.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/matmul_int_inl.h"
#include "kernels/cpu/rows_inl.h"

namespace espalier {
namespace {

// The products with sparse int8 and int4 are nullptr where the set does not take them.
constexpr CpuKernels make_table(Isa isa, MatmulFn int8_sparse, MatmulFn int4_sparse) {
  return {
      .isa = isa,
      .products = {{dense_bf16, dense_f32, dense_int8, dense_int4},
                   {sparse_bf16, nullptr, int8_sparse, int4_sparse},
                   {sparse_bf16, nullptr, int8_sparse, int4_sparse}},
      .round_row = round_row,
      .fill_tiles = fill_tiles,
      .quantise_row = quantise_row,
      .rms_norm = rms_norm,
      .silu_multiply = silu_multiply,
      .softmax = softmax,
      .sigmoid = sigmoid,
      .log_sum_exp = log_sum_exp,
      .axpy = axpy,
      .rotate = rotate,
      .write_kv = {write_kv<float>, write_kv<uint16_t>, write_kv<int8_t>},
      .attend = {attend<float>, attend<uint16_t>, attend<int8_t>},
      .attend_combine = attend_combine,
  };
}

}  // namespace
}  // namespace espalier
