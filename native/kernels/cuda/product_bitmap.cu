// Bitmap: lanes have different numbers of values. The first words of each lie in its own bank as they come; the others
// follow lane after lane, one scan of a warp finds where, and they are moved behind the first ones. Then every lane
// walks its two rows, at conflict-free places, with no counting of bits.
#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/wide_expanded.cuh"

namespace espalier::cuda {
namespace {

__device__ __forceinline__ int inclusive_scan(int value, int lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int left = __shfl_up_sync(~0u, value, distance);
    if (lane >= distance) value += left;
  }
  return value;
}

// A tile's fixed part goes to the front of the stage, the rest to args.tail_at.
struct BitmapSource {
  uint32_t begin;
  uint32_t end;
  __device__ uint32_t bytes(const ProductArgs&) const { return (end - begin) * 16; }
  __device__ void find(const ProductArgs& args, int64_t tile) {
    begin = __ldg(args.starts + tile);
    end = __ldg(args.starts + tile + 1);
  }
  __device__ void copy(const ProductArgs& args, int64_t, uint32_t to, uint32_t barrier, uint64_t policy) const {
    const uint32_t fixed = kMaskBytes + args.slots * kSlotBytes;
    const uint8_t* from = args.tiles + static_cast<int64_t>(begin) * 16;
    ptx::bulk_load(to, from, fixed, barrier, policy);
    const uint32_t tail = bytes(args) - fixed;
    if (tail > 0) {
      ptx::bulk_load(to + args.tail_at, from + fixed, tail, barrier, policy);
    }
  }
};

struct BitmapTile {
  using Source = BitmapSource;
  using Operand = ExpandedOperand<BitmapTile>;

  __device__ static constexpr int input(int quarter, int t) { return quarter * 32 + t * 8; }
  __device__ static uint4 arrange(uint4 b, int) { return b; }

  __device__ void begin(const ProductArgs& args, uint32_t stage, int lane) {
    masks_ = ptx::load_shared_8(stage + lane * 8);
    const uint32_t values = stage + kMaskBytes + lane * 4;
    const int first = __popc(masks_.x);
    const int words = (first + __popc(masks_.y) + 1) / 2;
    const int tail = max(words - args.slots, 0);
    uint32_t from = stage + args.tail_at + 4 * (inclusive_scan(tail, lane) - tail);
    uint32_t to = values + args.slots * kSlotBytes;
    const int most = __reduce_max_sync(~0u, tail);
    for (int done = 0; done < most; done += kMoved) {
      // All are read before any is written: both may be in the same place.
      uint32_t word[kMoved];
#pragma unroll
      for (int i = 0; i < kMoved; ++i) {
        if (i % 2 == 0 && done + i >= most) break;
        if (done + i < tail) word[i] = ptx::load_shared(from + 4 * i);
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kMoved; ++i) {
        if (i % 2 == 0 && done + i >= most) break;
        if (done + i < tail) ptx::store_shared(to + i * kSlotBytes, word[i]);
      }
      from += 4 * kMoved;
      to += kMoved * kSlotBytes;
    }
    at_[0] = values;
    step_[0] = 2;
    at_[1] = values + first / 2 * kSlotBytes + first % 2 * 2;
    step_[1] = first % 2 != 0 ? kSlotBytes - 2 : 2;
  }

  template <int kQuarter, int kHalf>
  __device__ void expand(uint32_t (&a)[4]) {
    constexpr int kBit = kQuarter * 8 + kHalf * 4;
    a[0] = ptx::expand_pair<kBit, kSlotBytes>(masks_.x, at_[0], step_[0]);
    a[1] = ptx::expand_pair<kBit, kSlotBytes>(masks_.y, at_[1], step_[1]);
    a[2] = ptx::expand_pair<kBit + 2, kSlotBytes>(masks_.x, at_[0], step_[0]);
    a[3] = ptx::expand_pair<kBit + 2, kSlotBytes>(masks_.y, at_[1], step_[1]);
  }
  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    multiply_expanded<kQuarter>(*this, acc, b);
  }

  // The words that were moved may lie where the next tile comes.
  __device__ static void finish() { ptx::copy_engine_fence(); }

 private:
  uint2 masks_;
  uint32_t at_[2];
  uint32_t step_[2];
};

}  // namespace

// Expanding is bound by instructions: more warps hide more of their latency.
ProductKernel bitmap_kernel(int tokens) {
  if (tokens <= 8) return make_kernel<BitmapTile, 1, 1, 24>();
  return make_kernel<BitmapTile, 2, 1, 16>();
}

WideKernel bitmap_wide(int tokens) { return choose_wide<BitmapTile>(tokens); }

ExpandKernel bitmap_expand() { return make_expand<BitmapTile, 24>(); }
WideKernel bitmap_expanded() { return make_wide_by_rows<ByExpansion<BitmapTile>>(); }

}  // namespace espalier::cuda
