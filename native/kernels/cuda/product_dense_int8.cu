// Dense weights of 8 bits: as dense ones of bf16, once codes are bf16 numbers; scales multiply the sums of 64 inputs.
#include "kernels/cuda/decode/decode_kernel.cuh"
#include "kernels/cuda/tile_dense_codes.cuh"

namespace espalier::cuda {

ProductKernel dense_int8_kernel(int tokens) {
  if (tokens <= 8) return make_kernel<DenseCodesTile, 1, 1, 16>();
  return make_kernel<DenseCodesTile, 2, 1, 16>();
}

WideKernel dense_int8_wide(int tokens) { return choose_wide<DenseCodesTile>(tokens); }

DecodeKernel dense_int8_decode(bool kv_is_bf16) { return choose_decode<DenseCodesTile, DenseCodesTile>(kv_is_bf16); }

}  // namespace espalier::cuda
