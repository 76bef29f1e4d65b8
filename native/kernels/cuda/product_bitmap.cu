// Bitmap: lanes have different numbers of values. The first quads of each have their places; the others come lane after
// lane, one scan of a warp finds where, and they are moved to the places that follow, where the masks were.
#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/wide_expanded.cuh"

namespace espalier::cuda {
namespace {

struct BitmapSource {
  uint32_t begin;
  uint32_t end;
  __device__ uint32_t bytes(const ProductArgs&) const { return (end - begin) * 16; }
  __device__ void find(const ProductArgs& args, int64_t tile) {
    begin = __ldg(args.starts + tile);
    end = __ldg(args.starts + tile + 1);
  }
  __device__ void copy(const ProductArgs& args, int64_t, uint32_t to, uint32_t barrier, uint64_t policy) const {
    ptx::bulk_load(to + args.masks_at, args.tiles + static_cast<int64_t>(begin) * 16, bytes(args), barrier, policy);
  }
};

// Quads that are moved at a time.
constexpr int kMoved = 4;

struct BitmapTile {
  using Source = BitmapSource;
  using Operand = ExpandedOperand<BitmapTile>;
  using Lane = QuadLane;

  __device__ static constexpr int input(int quarter, int t) { return quarter * 32 + t * 8; }
  __device__ static uint4 arrange(uint4 b, int) { return b; }

  __device__ void begin(const ProductArgs& args, uint32_t stage, const QuadLane& lane) {
    const uint32_t masks_at = stage + args.masks_at;
    const uint32_t first = masks_at + args.slots * kSlotBytes;
    const uint2 masks = ptx::load_shared_8(masks_at + lane.offset);
    const int quads = (__popc(masks.x) + __popc(masks.y) + kQuad - 1) / kQuad;
    const int late = max(quads - args.slots, 0);
    uint32_t from = first + kSlotBytes + (ptx::inclusive_sum(late) - late) * kQuadBytes;
    uint32_t to = masks_at + lane.offset;
#pragma unroll 1
    for (int left = late; left > 0; left -= kMoved) {
      uint2 quad[kMoved];
#pragma unroll
      for (int i = 0; i < kMoved; ++i) {
        if (i < left) quad[i] = ptx::load_shared_8(from + i * kQuadBytes);
      }
#pragma unroll
      for (int i = 0; i < kMoved; ++i) {
        if (i < left) ptx::store_shared_8(to - i * kSlotBytes, quad[i]);
      }
      from += kMoved * kQuadBytes;
      to -= kMoved * kSlotBytes;
    }
    rows_.begin(masks, first, lane);
  }

  template <int kQuarter, int kHalf>
  __device__ __forceinline__ void expand(uint32_t (&a)[4]) {
    rows_.expand<kQuarter, kHalf>(a);
  }
  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    multiply_expanded<kQuarter>(*this, acc, b);
  }

  // The quads that were moved may lie where the next tile comes.
  __device__ static void finish() { ptx::copy_engine_fence(); }

 private:
  QuadRows rows_;
};

}  // namespace

// Expanding is bound by instructions: more warps hide more of their latency. The next launch takes the place of one of
// two blocks while the other one ends.
ProductKernel bitmap_kernel(int tokens, bool is_brief) {
  ProductKernel kernel = tokens <= 8 ? make_kernel<BitmapTile, 1, 1, 12, 2>() : make_kernel<BitmapTile, 2, 1, 8, 2>();
  if (is_brief) kernel.stages = 1;
  return kernel;
}

WideKernel bitmap_wide(int tokens) { return choose_wide<BitmapTile, false>(tokens); }

ExpandKernel bitmap_expand() { return make_expand<BitmapTile, 24>(); }
// With three tiles at a time the rings of the products would be a stage shorter, which costs more.
WideKernel bitmap_expanded() { return make_expanded<BitmapTile, 2>(); }

}  // namespace espalier::cuda
