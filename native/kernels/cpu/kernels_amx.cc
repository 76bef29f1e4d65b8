// AVX-512's set with the matrix unit (AMX) for products of many tokens.
#include "kernels/cpu/avx512_inl.h"

namespace espalier {

const CpuKernels* avx512_kernels();

namespace {

// What the products below fall back to.
void multiply_by_vectors(const MatmulTask& task) { avx512_kernels()->matmul(task.weights.format())(task); }

}  // namespace
}  // namespace espalier

#include "kernels/cpu/matmul_amx_bf16_inl.h"
#include "kernels/cpu/matmul_amx_int_inl.h"

namespace espalier {
namespace {

CpuKernels with_tiles() {
  CpuKernels kernels = *avx512_kernels();
  kernels.isa = Isa::kAmx;
  const auto at = [&](Storage storage, Values values) -> MatmulFn& {
    return kernels.products[static_cast<int>(storage)][static_cast<int>(values)];
  };
  at(Storage::kDense, Values::kBf16) = tiled_dense_bf16;
  at(Storage::kDense, Values::kInt8) = tiled_dense_int8;
  at(Storage::kDense, Values::kInt4) = tiled_dense_int4;
  for (const Storage storage : {Storage::kBitmap, Storage::kNm}) {
    at(storage, Values::kBf16) = tiled_sparse_bf16;
    at(storage, Values::kInt8) = tiled_sparse_int8;
    at(storage, Values::kInt4) = tiled_sparse_int4;
  }
  kernels.tiled_tokens = 5;
  return kernels;
}

}  // namespace

const CpuKernels* amx_kernels() {
  static const CpuKernels kernels = with_tiles();
  return &kernels;
}

}  // namespace espalier
