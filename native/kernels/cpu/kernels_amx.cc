// AVX-512 with the matrix unit (AMX) for products of many tokens.
#include "kernels/cpu/avx512_inl.h"
#include "kernels/cpu/matmul_amx_bf16_inl.h"
#include "kernels/cpu/matmul_amx_int_inl.h"
#include "kernels/cpu/table_inl.h"

namespace espalier {
namespace {

constexpr CpuKernels with_tiles() {
  CpuKernels kernels = make_table(Isa::kAmx, tiled_sparse_int8, tiled_sparse_int4);
  const auto at = [&](Storage storage, Values values) -> MatmulFn& {
    return kernels.products[static_cast<int>(storage)][static_cast<int>(values)];
  };
  at(Storage::kDense, Values::kBf16) = tiled_dense_bf16;
  at(Storage::kBitmap, Values::kBf16) = tiled_sparse_bf16;
  at(Storage::kNm, Values::kBf16) = tiled_sparse_bf16;
  at(Storage::kDense, Values::kInt8) = tiled_dense_int8;
  at(Storage::kDense, Values::kInt4) = tiled_dense_int4;
  kernels.tiled_tokens = 5;
  return kernels;
}

}  // namespace

const CpuKernels* amx_kernels() {
  static constexpr CpuKernels kernels = with_tiles();
  return &kernels;
}

}  // namespace espalier
