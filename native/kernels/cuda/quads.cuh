// A lane's stored values on their way to where its masks say they belong. See tile_codec.h for how quads lie.
#pragma once

#include "kernels/cuda/ptx/memory.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {

// What a lane knows whatever the tile is.
struct QuadLane {
  uint32_t offset;  // of its quad among 32
  // For the four bits of a mask that are the lane's number modulo 16: from which of the next four stored bytes each of
  // four comes, 4 being a zero; in the highest byte, how many are stored.
  uint32_t selector;

  QuadLane() = default;
  __device__ explicit QuadLane(int lane)
      : offset(ptx::keep(lane * kQuadBytes)), selector(ptx::keep(selector_of(lane))) {}

 private:
  __device__ static uint32_t selector_of(int lane) {
    uint32_t selector = 0;
    uint32_t count = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bit = lane >> i & 1;
      selector |= (bit != 0 ? count : 4) << (4 * i);
      count += bit;
    }
    return selector | count << 24;
  }
};

// How many values a lane stores before each of its steps, see tile_codec.h: those of steps 2q + h are byte q of word h.
struct StepCounts {
  uint32_t at[2];

  // Of each step.
  __device__ explicit StepCounts(uint2 masks) {
    const uint32_t both = of_fours(masks.x) + of_fours(masks.y);
    at[0] = both & 0x0f0f0f0fu;
    at[1] = both >> 4 & 0x0f0f0f0fu;
  }

 private:
  // The bits of each four.
  __device__ static uint32_t of_fours(uint32_t mask) {
    mask -= mask >> 1 & 0x55555555u;
    return (mask & 0x33333333u) + (mask >> 2 & 0x33333333u);
  }
};

// Both rows of a lane, whose quads lie kStride bytes apart. Tile has place<kStep>(), the bytes before a lane's first
// value of a step if a value took kStride / kQuad of them, plus where its quads begin, a multiple of kStride; and
// offset(), of its quads among those of other lanes. Tiles that are expanded, see product.cuh, have this as their
// expand(). Three quads are read from there on, whether there are so many or not.
template <class Tile, int kStride>
class QuadRows {
 public:
  // Four neighbours of each row, two in each word: all of a tile's, one after the other.
  template <int kQuarter, int kHalf>
  __device__ __forceinline__ void expand(uint32_t (&a)[4]) {
    constexpr int kStep = 2 * kQuarter + kHalf;
    constexpr uint32_t kCount = 8u << 24;  // what a selector's count is multiplied by, for bits
    const uint32_t upper = upper_;
    const uint32_t lower = lower_;
    // The next eight stored bytes, low and high ones.
    const uint32_t low[2] = {__funnelshift_r(quads_[0].x, quads_[1].x, bits_),
                             __funnelshift_r(quads_[1].x, quads_[2].x, bits_)};
    const uint32_t high[2] = {__funnelshift_r(quads_[0].y, quads_[1].y, bits_),
                              __funnelshift_r(quads_[1].y, quads_[2].y, bits_)};
    if constexpr (kStep + 1 < kSteps) look<kStep + 1>();
    const uint32_t of_upper = __dp4a(upper, kCount, 0u);
    put(ptx::permute(low[0], 0, upper), ptx::permute(high[0], 0, upper), a[0], a[2]);
    put(ptx::permute(__funnelshift_rc(low[0], low[1], of_upper), 0, lower),
        ptx::permute(__funnelshift_rc(high[0], high[1], of_upper), 0, lower), a[1], a[3]);
  }

 protected:
  __device__ __forceinline__ void begin_rows(uint2 masks, uint32_t selector) {
    masks_ = masks;
    selector_ = selector;
    look<0>();
  }

 private:
  // Asks for what expanding a step takes, ahead of its turn.
  template <int kStep>
  __device__ __forceinline__ void look() {
    const Tile& tile = static_cast<const Tile&>(*this);
    const uint32_t place = tile.template place<kStep>();
    const uint32_t at = (place & ~(kStride - 1u)) | tile.offset();
#pragma unroll
    for (int i = 0; i < 3; ++i) quads_[i] = ptx::load_shared_8(at + i * kStride);
    // Modulo 32, eight for each value of the first quad that is another step's.
    bits_ = kStride == kQuadBytes ? place << 2 : place >> 3;
    static_assert(kStride == kQuadBytes || kStride == kSlotBytes);
    upper_ = __shfl_sync(~0u, selector_, static_cast<int>(masks_.x >> (4 * kStep)), 16);
    lower_ = __shfl_sync(~0u, selector_, static_cast<int>(masks_.y >> (4 * kStep)), 16);
  }
  // Four values from their low and high bytes.
  __device__ static void put(uint32_t low, uint32_t high, uint32_t& first, uint32_t& second) {
    first = ptx::permute(low, high, 0x5140);
    second = ptx::permute(low, high, 0x7362);
  }

  uint2 masks_;
  uint32_t selector_;
  uint32_t bits_;
  uint2 quads_[3];
  uint32_t upper_;
  uint32_t lower_;
};

}  // namespace espalier::cuda
