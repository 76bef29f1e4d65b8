// Bitmap: lanes have different numbers of values in each step. Where a step's begin is in the tile; one scan of a warp
// finds where a lane's begin in all of its steps.
#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/wide_expanded.cuh"

namespace espalier::cuda {
namespace {

struct BitmapSource {
  const uint32_t* at;
  uint32_t begin;
  uint32_t end;
  __device__ uint32_t bytes(const ProductArgs&) const { return (end - begin) * 16; }
  __device__ void seek(const ProductArgs& args, int64_t tile) {
    at = args.starts + tile;
    advance(args, 0);
  }
  __device__ void advance(const ProductArgs&, int tiles) {
    ptx::advance(at, tiles);
    begin = __ldg(at);
    end = __ldg(at + 1);
  }
  __device__ void copy(const ProductArgs& args, uint32_t to, uint32_t barrier, uint64_t policy) const {
    ptx::bulk_load(to, args.tiles + static_cast<int64_t>(begin) * 16, bytes(args), barrier, policy);
  }
};

template <class Selectors>
class BitmapTileBy : public QuadRows<BitmapTileBy<Selectors>, kQuadBytes, Selectors> {
 public:
  using typename QuadRows<BitmapTileBy, kQuadBytes, Selectors>::Lane;
  using Source = BitmapSource;
  using Operand = ExpandedOperand<BitmapTileBy>;

  __device__ static constexpr int input(int quarter, int t) { return quarter * 32 + t * 8; }
  __device__ static uint4 arrange(uint4 b, int) { return b; }

  __device__ void begin(const ProductArgs&, uint32_t stage, const Lane& lane) {
    const uint4 steps = ptx::load_shared_16(stage);
    steps_[0] = steps.x;
    steps_[1] = steps.y;
    steps_[2] = steps.z;
    steps_[3] = steps.w;
    quads_at_ = stage + kBitmapHead;
    const uint2 masks = ptx::load_shared_8(stage + 2 * kSteps + lane.offset);
    const StepCounts counts = this->begin_masks(masks, lane);
    // At most 31 lanes are before a lane, with 8 values each: no byte overflows.
#pragma unroll
    for (int i = 0; i < 2; ++i) before_[i] = ptx::inclusive_sum(counts.at[i]) - counts.at[i];
    this->begin_rows();
  }
  template <int kStep>
  __device__ __forceinline__ uint32_t place() const {
    const uint32_t of_step = __dp2a_lo(steps_[kStep / 2], 1u << (8 * (kStep % 2)), quads_at_);
    return __dp4a(before_[Selectors::word_of(kStep)], 2u << (8 * Selectors::byte_of(kStep)), of_step);
  }
  __device__ static constexpr uint32_t offset() { return 0; }

  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    multiply_expanded<kQuarter>(*this, acc, b);
  }

 private:
  uint32_t before_[2];  // of the lanes before, see StepCounts
  uint32_t steps_[kSteps / 2];
  uint32_t quads_at_;
};

using BitmapTile = BitmapTileBy<SharedSelectors>;
// Products of many tokens are bound by shared memory.
using WideBitmapTile = BitmapTileBy<PermutedSelectors>;

}  // namespace

// Expanding is bound by instructions: more warps hide more of their latency. The next launch takes the place of one of
// two blocks while the other one ends.
ProductKernel bitmap_kernel(int tokens, bool is_brief) {
  ProductKernel kernel = tokens <= 8 ? make_kernel<BitmapTile, 1, 1, 12, 2>() : make_kernel<BitmapTile, 2, 1, 8, 2>();
  if (is_brief) kernel.stages = 1;
  return kernel;
}

WideKernel bitmap_wide(int tokens) { return choose_wide<WideBitmapTile>(tokens); }

ExpandKernel bitmap_expand() { return make_expand<BitmapTile, 24>(); }
// Three tiles at a time are 2 to 3 % slower.
WideKernel bitmap_expanded() { return make_expanded<BitmapTile, 2>(); }

}  // namespace espalier::cuda
