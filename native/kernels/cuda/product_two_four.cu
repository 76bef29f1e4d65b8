// 2:4: the tensor cores take the values and their positions as they lie, nothing is decoded.
#include "kernels/cuda/product.cuh"

namespace espalier::cuda {
namespace {

// Lane t has row t of a 4 × 4 matrix of words, and gets column t.
__device__ __forceinline__ uint4 transpose(uint4 r, int t) {
  const bool odd = (t & 1) != 0;
  uint32_t s0 = __shfl_xor_sync(~0u, odd ? r.x : r.y, 1);
  uint32_t s1 = __shfl_xor_sync(~0u, odd ? r.z : r.w, 1);
  r = odd ? uint4{s0, r.y, s1, r.w} : uint4{r.x, s0, r.z, s1};
  const bool high = (t & 2) != 0;
  s0 = __shfl_xor_sync(~0u, high ? r.x : r.z, 2);
  s1 = __shfl_xor_sync(~0u, high ? r.y : r.w, 2);
  return high ? uint4{s0, s1, r.z, r.w} : uint4{r.x, r.y, s0, s1};
}

struct TwoFourSize {
  __device__ static uint32_t bytes(const ProductArgs&) { return kTwoFourBytes; }
};

struct TwoFourTile {
  using Source = FixedSource<TwoFourSize>;

  __device__ static int input(int quarter, int t) { return quarter * 32 + t * 8; }
  // B wants of lane t the inputs 2t, 2t + 1 of each 8, which the four lanes have loaded as 8 consecutive ones each.
  __device__ static uint4 arrange(uint4 b, int t) { return transpose(b, t); }

  __device__ void begin(const ProductArgs&, uint32_t stage, int lane) {
    values_ = stage + lane * 16;
    positions_[0] = ptx::load_shared(stage + 4 * 512 + lane * 4);
    positions_[1] = ptx::load_shared(stage + 4 * 512 + 128 + lane * 4);
  }

  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    const uint4 a = ptx::load_shared_16(values_ + kQuarter * 512);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      ptx::mma_sparse_m16n8k32<kQuarter % 2>(acc[i], a, b[i], positions_[kQuarter / 2]);
    }
  }

  __device__ static void finish() {}

 private:
  uint32_t values_;
  uint32_t positions_[2];
};

}  // namespace

// With more tokens, more rows share what is read of x, which would otherwise exceed the weights.
ProductKernel two_four_kernel(int tokens) {
  if (tokens <= 8) return make_kernel<TwoFourTile, 1, 1, 16>();
  if (tokens <= 16) return make_kernel<TwoFourTile, 2, 2, 16>();
  if (tokens <= 32) return make_kernel<TwoFourTile, 4, 2, 16>();
  return make_kernel<TwoFourTile, 8, 2, 12>();
}

}  // namespace espalier::cuda
