// The dispatch table of one instruction set, made of what the headers before this one define.
#pragma once

#include "kernels/cpu/attend_inl.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/matmul_int_inl.h"
#include "kernels/cpu/rows_inl.h"

namespace espalier {
namespace {

// The products with sparse weights, nullptr where the set does not take them.
struct SparseProducts {
  MatmulFn bf16 = nullptr;
  MatmulFn int8 = nullptr;
  MatmulFn int4 = nullptr;
};

constexpr CpuKernels make_table(Isa isa, const SparseProducts& sparse) {
  return {
      .isa = isa,
      .products = {{dense_bf16, dense_f32, dense_int8, dense_int4},
                   {sparse.bf16, nullptr, sparse.int8, sparse.int4},
                   {sparse.bf16, nullptr, sparse.int8, sparse.int4}},
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
