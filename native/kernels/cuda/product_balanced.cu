// n:32: every lane has n values in each of its rows.
#include "kernels/cuda/decode/decode_kernel.cuh"
#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/tile_dense.cuh"
#include "kernels/cuda/wide_expanded.cuh"

namespace espalier::cuda {
namespace {

// As balanced_bytes().
struct BalancedSize {
  __device__ static uint32_t bytes(const ProductArgs& args) {
    return kMaskBytes + (2 * args.n + kQuad - 1) / kQuad * kSlotBytes;
  }
};

class BalancedTile : public QuadRows<BalancedTile, kSlotBytes, PermutedSelectors> {
 public:
  using Source = FixedSource<BalancedSize>;
  using Operand = ExpandedOperand<BalancedTile>;

  // Lane t's 32 inputs, in the order of its mask.
  __device__ static constexpr int input(int quarter, int t) { return t * 32 + quarter * 8; }
  __device__ static uint4 arrange(uint4 b, int) { return b; }

  __device__ void begin(const ProductArgs&, uint32_t stage, const Lane& lane) {
    quads_at_ = stage + kMaskBytes;
    offset_ = lane.offset;
    const uint2 masks = ptx::load_shared_8(stage + lane.offset);
    const StepCounts counts = begin_masks(masks, lane);
    const uint32_t through = counts.at[0] * 0x01010101u;
    before_[0] = through << 8;
    before_[1] = counts.at[1] * 0x01010100u + (through >> 24) * 0x01010101u;
    begin_rows();
  }
  template <int kStep>
  __device__ __forceinline__ uint32_t place() const {
    constexpr uint32_t kValueStep = kSlotBytes / kQuad;
    return __dp4a(before_[Selectors::word_of(kStep)], kValueStep << (8 * Selectors::byte_of(kStep)), quads_at_);
  }
  __device__ uint32_t offset() const { return offset_; }

  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    multiply_expanded<kQuarter>(*this, acc, b);
  }

 private:
  uint32_t before_[2];  // of the lane itself, see StepCounts
  uint32_t quads_at_;
  uint32_t offset_;
};

}  // namespace

ProductKernel balanced_kernel(int tokens) {
  if (tokens <= 8) return make_kernel<BalancedTile, 1, 1, 8, 2>();
  return make_kernel<BalancedTile, 2, 1, 8, 2>();
}

WideKernel balanced_wide(int tokens) { return choose_wide<BalancedTile, false>(tokens); }

DecodeKernel balanced_decode(bool kv_is_bf16) { return choose_decode<DenseTile, BalancedTile>(kv_is_bf16); }
ExpandKernel balanced_expand() { return make_expand<BalancedTile, 24>(); }
WideKernel balanced_expanded() { return make_expanded<BalancedTile, 3>(); }

}  // namespace espalier::cuda
