// n:32: every lane has n values in each of its rows. The values of its two rows are the halves of words that lie in the
// lane's own bank, so that lanes at different places of their runs do not collide.
#include "kernels/cuda/decode/decode_kernel.cuh"
#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/tile_dense.cuh"
#include "kernels/cuda/wide_expanded.cuh"

namespace espalier::cuda {
namespace {

struct BalancedSize {
  __device__ static uint32_t bytes(const ProductArgs& args) { return kMaskBytes + args.slots * kSlotBytes; }
};

struct BalancedTile {
  using Source = FixedSource<BalancedSize>;
  using Operand = ExpandedOperand<BalancedTile>;

  // Lane t's 32 inputs, in the order of its mask.
  __device__ static constexpr int input(int quarter, int t) { return t * 32 + quarter * 8; }
  __device__ static uint4 arrange(uint4 b, int) { return b; }

  __device__ void begin(const ProductArgs&, uint32_t stage, int lane) {
    masks_ = ptx::load_shared_8(stage + lane * 8);
    at_[0] = stage + kMaskBytes + lane * 4;
    at_[1] = at_[0] + 2;
  }

  template <int kQuarter, int kHalf>
  __device__ void expand(uint32_t (&a)[4]) {
    constexpr int kBit = kQuarter * 8 + kHalf * 4;
    a[0] = ptx::expand_pair<kBit, kSlotBytes>(masks_.x, at_[0]);
    a[1] = ptx::expand_pair<kBit, kSlotBytes>(masks_.y, at_[1]);
    a[2] = ptx::expand_pair<kBit + 2, kSlotBytes>(masks_.x, at_[0]);
    a[3] = ptx::expand_pair<kBit + 2, kSlotBytes>(masks_.y, at_[1]);
  }
  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    multiply_expanded<kQuarter>(*this, acc, b);
  }

  __device__ static void finish() {}

 private:
  uint2 masks_;
  uint32_t at_[2];
};

}  // namespace

ProductKernel balanced_kernel(int tokens) {
  if (tokens <= 8) return make_kernel<BalancedTile, 1, 1, 16>();
  return make_kernel<BalancedTile, 2, 1, 16>();
}

WideKernel balanced_wide(int tokens) { return choose_wide<BalancedTile>(tokens); }

DecodeKernel balanced_decode(bool kv_is_bf16) { return choose_decode<DenseTile, BalancedTile>(kv_is_bf16); }
ExpandKernel balanced_expand() { return make_expand<BalancedTile, 24>(); }
WideKernel balanced_expanded() { return make_wide_by_rows<ByExpansion<BalancedTile>>(); }

}  // namespace espalier::cuda
