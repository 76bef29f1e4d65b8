// Dense weights, in the order in which the tensor cores want them: a lane reads 16 bytes of each of its rows at a time.
#include "kernels/cuda/decode/decode_kernel.cuh"
#include "kernels/cuda/tile_dense.cuh"
#include "kernels/cuda/wide_dense.cuh"

namespace espalier::cuda {

ProductKernel dense_kernel(int tokens) {
  if (tokens <= 8) return make_kernel<DenseTile, 1, 1, 16>();
  return make_kernel<DenseTile, 2, 1, 16>();
}

WideKernel dense_wide(int tokens) {
  if (tokens <= 32) return make_wide<DenseTile, 32, true>();
  if (tokens <= 64) return make_wide<DenseTile, 64, true>();
  if (tokens <= 128) return make_wide<DenseTile, 128, true>();
  return make_wide_by_rows();
}

DecodeKernel dense_decode(bool kv_is_bf16) { return choose_decode<DenseTile, DenseTile>(kv_is_bf16); }

}  // namespace espalier::cuda
