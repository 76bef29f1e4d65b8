// A lane's stored values on their way to where its masks say they belong. See tile_codec.h for steps and quads.
//
// A selector says for four bits of a mask from which of the next four stored bytes each of four comes, 4 or more being
// a zero; above its 16 bits may be anything. There are two ways to come by them. Both have:
//   Lane                   what a lane knows whatever the tile is, with its `offset` of its quad among 32
//   begin(masks, lane)
//   counts()               how many values the lane stores in each step: those of step k are byte byte_of(k) of word
//                          word_of(k)
//   upper<kStep>(), lower<kStep>()
//   upper_bits<kStep>(u)   eight for each value of the upper row, whose selector is u
#pragma once

#include "kernels/cuda/ptx/memory.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {

struct StepCounts {
  uint32_t at[2];
};

// Lane i has the selector of the mask i modulo 16, which others ask it for: the fewest instructions, and products that
// add leave the integer units to what only they can do. For layouts that are bound by these.
class SharedSelectors {
 public:
  struct Lane {
    uint32_t offset;
    uint32_t selector;  // in the highest byte, how many are stored

    Lane() = default;
    __device__ explicit Lane(int lane) : offset(ptx::keep(lane * kQuadBytes)), selector(ptx::keep(selector_of(lane))) {}
  };

  __device__ void begin(uint2 masks, const Lane& lane) {
    upper_[0] = masks.x;
    upper_[1] = masks.x >> 4;
    lower_[0] = masks.y;
    lower_[1] = masks.y >> 4;
    selector_ = lane.selector;
  }
  __device__ static constexpr int word_of(int step) { return step % 2; }
  __device__ static constexpr int byte_of(int step) { return step / 2; }
  __device__ StepCounts counts() const {
    const uint32_t both = of_fours(upper_[0]) + of_fours(lower_[0]);
    return {{both & 0x0f0f0f0fu, both >> 4 & 0x0f0f0f0fu}};
  }
  template <int kStep>
  __device__ __forceinline__ uint32_t upper() const {
    return look_up<kStep>(upper_);
  }
  template <int kStep>
  __device__ __forceinline__ uint32_t lower() const {
    return look_up<kStep>(lower_);
  }
  template <int>
  __device__ __forceinline__ static uint32_t upper_bits(uint32_t upper) {
    return __dp4a(upper, 8u << 24, 0u);
  }

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
  // The bits of each four.
  __device__ static uint32_t of_fours(uint32_t mask) {
    mask -= mask >> 1 & 0x55555555u;
    return (mask & 0x33333333u) + (mask >> 2 & 0x33333333u);
  }
  template <int kStep>
  __device__ __forceinline__ uint32_t look_up(const uint32_t (&masks)[2]) const {
    const uint32_t mask = masks[kStep % 2];
    const uint32_t four = kStep < 2 ? mask : __dp4a(mask, 1u << (8 * (kStep / 2)), 0u);
    return __shfl_sync(~0u, selector_, static_cast<int>(four), 16);
  }

  uint32_t upper_[2];  // the mask, and from its fifth bit on
  uint32_t lower_[2];
  uint32_t selector_;
};

// Permutations look up four masks at a time, in tables for three of their bits: nothing goes through shared memory. For
// layouts whose products are bound by that.
class PermutedSelectors {
 public:
  struct Lane {
    uint32_t offset;

    Lane() = default;
    __device__ explicit Lane(int lane) : offset(ptx::keep(lane * kQuadBytes)) {}
  };

  __device__ void begin(uint2 masks, const Lane&) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      upper_[i] = FourSteps(masks.x >> (16 * i));
      lower_[i] = FourSteps(masks.y >> (16 * i));
    }
  }
  __device__ static constexpr int word_of(int step) { return step / 4; }
  __device__ static constexpr int byte_of(int step) { return step % 4; }
  __device__ StepCounts counts() const {
    return {{upper_[0].count + lower_[0].count, upper_[1].count + lower_[1].count}};
  }
  template <int kStep>
  __device__ __forceinline__ uint32_t upper() const {
    return upper_[word_of(kStep)].template selector<byte_of(kStep)>();
  }
  template <int kStep>
  __device__ __forceinline__ uint32_t lower() const {
    return lower_[word_of(kStep)].template selector<byte_of(kStep)>();
  }
  template <int kStep>
  __device__ __forceinline__ uint32_t upper_bits(uint32_t) const {
    return __dp4a(upper_[word_of(kStep)].count, 8u << (8 * byte_of(kStep)), 0u);
  }

 private:
  // Of a row; in each word, a byte for each step.
  struct FourSteps {
    uint32_t low;  // the selectors' low bytes
    uint32_t high;
    uint32_t count;

    FourSteps() = default;
    // Tables of bytes go by a mask's first three bits. With the fourth, a permutation gives the byte's sign: 0.
    __device__ explicit FourSteps(uint32_t mask) {
      const uint32_t first_three = mask & 0x7777u;
      const uint32_t lacks_last = ptx::permute(0x01010101u, 0x01010101u, mask);
      low = ptx::permute(0x10044044u, 0x10044044u, first_three);
      high = ptx::permute(0x24141404u, 0x32212110u, first_three) + 0x40u * lacks_last;
      count = ptx::permute(0x03020201u, 0x04030302u, first_three) - lacks_last;
    }
    template <int kByte>
    __device__ __forceinline__ uint32_t selector() const {
      return ptx::permute(low, high, kByte * 0x11 + 0x40);
    }
  };

  FourSteps upper_[2];
  FourSteps lower_[2];
};

// Both rows of a lane, whose quads lie kStride bytes apart. Tile has place<kStep>(), the bytes before a lane's first
// value of a step if a value took kStride / kQuad of them, plus where its quads begin, a multiple of kStride; and
// offset(), of its quads among those of other lanes. Tiles that are expanded, see product.cuh, have this as their
// expand(). Three quads are read from there on, whether there are so many or not.
template <class Tile, int kStride, class SelectorSource>
class QuadRows {
 public:
  using Selectors = SelectorSource;
  using Lane = typename Selectors::Lane;

  // Four neighbours of each row, two in each word: all of a tile's, one after the other.
  template <int kQuarter, int kHalf>
  __device__ __forceinline__ void expand(uint32_t (&a)[4]) {
    constexpr int kStep = 2 * kQuarter + kHalf;
    const uint32_t upper = upper_;
    const uint32_t lower = lower_;
    // The next eight stored bytes, low and high ones.
    const uint32_t low[2] = {__funnelshift_r(quads_[0].x, quads_[1].x, bits_),
                             __funnelshift_r(quads_[1].x, quads_[2].x, bits_)};
    const uint32_t high[2] = {__funnelshift_r(quads_[0].y, quads_[1].y, bits_),
                              __funnelshift_r(quads_[1].y, quads_[2].y, bits_)};
    if constexpr (kStep + 1 < kSteps) look<kStep + 1>();
    const uint32_t of_upper = selectors_.template upper_bits<kStep>(upper);
    put(ptx::permute(low[0], 0, upper), ptx::permute(high[0], 0, upper), a[0], a[2]);
    put(ptx::permute(__funnelshift_rc(low[0], low[1], of_upper), 0, lower),
        ptx::permute(__funnelshift_rc(high[0], high[1], of_upper), 0, lower), a[1], a[3]);
  }

 protected:
  // Returns the lane's counts. begin_rows() comes when place() knows what it needs.
  __device__ __forceinline__ StepCounts begin_masks(uint2 masks, const Lane& lane) {
    selectors_.begin(masks, lane);
    return selectors_.counts();
  }
  __device__ __forceinline__ void begin_rows() { look<0>(); }

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
    upper_ = selectors_.template upper<kStep>();
    lower_ = selectors_.template lower<kStep>();
  }
  // Four values from their low and high bytes.
  __device__ static void put(uint32_t low, uint32_t high, uint32_t& first, uint32_t& second) {
    first = ptx::permute(low, high, 0x5140);
    second = ptx::permute(low, high, 0x7362);
  }

  Selectors selectors_;
  uint32_t bits_;
  uint2 quads_[3];
  uint32_t upper_;
  uint32_t lower_;
};

}  // namespace espalier::cuda
