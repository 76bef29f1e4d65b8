// 2:4: the tensor cores take the values and their positions as they lie, nothing is decoded.
#include "kernels/cuda/decode/decode_kernel.cuh"
#include "kernels/cuda/tile_dense.cuh"
#include "kernels/cuda/transpose.cuh"
#include "kernels/cuda/wide.cuh"

namespace espalier::cuda {
namespace {

struct TwoFourSize {
  __device__ static uint32_t bytes(const ProductArgs&) { return kTwoFourBytes; }
};

struct TwoFourOperand;

struct TwoFourTile {
  using Source = FixedSource<TwoFourSize>;
  using Operand = TwoFourOperand;
  using Lane = int;

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

 private:
  friend TwoFourOperand;
  uint32_t values_;
  uint32_t positions_[2];
};

struct TwoFourOperand : TwoFourValues {
  template <class Tile>
  __device__ __forceinline__ void load(const Tile& tile, int, uint32_t) {
#pragma unroll
    for (int u = 0; u < 4; ++u) a[u] = ptx::load_shared_16(tile.values_ + u * 512);
    positions[0] = tile.positions_[0];
    positions[1] = tile.positions_[1];
  }
};

}  // namespace

// With more tokens, more rows share what is read of x, which would otherwise exceed the weights.
ProductKernel two_four_kernel(int tokens) {
  if (tokens <= 8) return make_kernel_of<TwoFourTile, StagedInputs<1, 2>, 1, 16>(tokens);
  return make_kernel_of<TwoFourTile, StagedInputs<2, 1>, 2, 12>(tokens);
}

WideKernel two_four_wide(int tokens) { return choose_wide<TwoFourTile>(tokens); }

DecodeKernel two_four_decode(bool kv_is_bf16) { return choose_decode<DenseTile, TwoFourTile>(kv_is_bf16); }

}  // namespace espalier::cuda
