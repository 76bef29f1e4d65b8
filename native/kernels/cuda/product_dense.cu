// Dense weights, in the order in which the tensor cores want them: a lane reads 16 bytes of each of its rows at a time.
#include "kernels/cuda/product.cuh"

namespace espalier::cuda {
namespace {

struct DenseSize {
  __device__ static uint32_t bytes(const ProductArgs&) { return kDenseBytes; }
};

struct DenseTile {
  using Source = FixedSource<DenseSize>;

  __device__ static int input(int quarter, int t) { return quarter * 32 + t * 8; }
  __device__ static uint4 arrange(uint4 b, int) { return b; }

  __device__ void begin(const ProductArgs&, uint32_t stage, int lane) { values_ = stage + lane * 16; }

  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    const uint4 upper = ptx::load_shared_16(values_ + 2 * kQuarter * 512);
    const uint4 lower = ptx::load_shared_16(values_ + (2 * kQuarter + 1) * 512);
    const uint32_t first[4] = {upper.x, lower.x, upper.y, lower.y};
    const uint32_t second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) ptx::mma_m16n8k16(acc[i], first, b[i].x, b[i].y);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) ptx::mma_m16n8k16(acc[i], second, b[i].z, b[i].w);
  }

  __device__ static void finish() {}

 private:
  uint32_t values_;
};

}  // namespace

ProductKernel dense_kernel(int tokens) {
  if (tokens <= 8) return make_kernel<DenseTile, 1, 1, 16>();
  if (tokens <= 16) return make_kernel<DenseTile, 2, 1, 16>();
  if (tokens <= 32) return make_kernel<DenseTile, 4, 2, 12>();
  return make_kernel<DenseTile, 8, 2, 8>();
}

}  // namespace espalier::cuda
