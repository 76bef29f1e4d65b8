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

// Both rows of a lane: tiles that are expanded, see product.cuh, have this as their expand(). Quads i + 1 lie
// kSlotBytes before quads i; three more than a lane has are read, but not used.
class QuadRows {
 public:
  // `first`: where the lanes' first quads lie, a multiple of kSlotBytes.
  __device__ void begin(uint2 masks, uint32_t first, const QuadLane& lane) {
    masks_ = masks;
    lane_ = lane;
    bits_ = 0;
    place_ = first + (kQuad - 1) * kValueStep;
    look(0);
  }
  // Four neighbours of each row, two in each word: all of a tile's, one after the other.
  template <int kQuarter, int kHalf>
  __device__ __forceinline__ void expand(uint32_t (&a)[4]) {
    constexpr int kBit = kQuarter * 8 + kHalf * 4;
    constexpr uint32_t kCount = 8u << 24;  // what a selector's count is multiplied by, for bits
    const uint32_t upper = upper_;
    const uint32_t lower = lower_;
    // The next eight stored bytes, low and high ones.
    const uint32_t low[2] = {__funnelshift_r(quads_[0].x, quads_[1].x, bits_),
                             __funnelshift_r(quads_[1].x, quads_[2].x, bits_)};
    const uint32_t high[2] = {__funnelshift_r(quads_[0].y, quads_[1].y, bits_),
                              __funnelshift_r(quads_[1].y, quads_[2].y, bits_)};
    // Products that add leave the integer units to what only they can do.
    const uint32_t of_upper = __dp4a(upper, kCount, 0u);
    bits_ = __dp4a(lower, kCount, __dp4a(upper, kCount, bits_));
    place_ = back(lower, back(upper, place_));
    if (kBit < 28) look(kBit + 4);
    put(ptx::permute(low[0], 0, upper), ptx::permute(high[0], 0, upper), a[0], a[2]);
    put(ptx::permute(__funnelshift_rc(low[0], low[1], of_upper), 0, lower),
        ptx::permute(__funnelshift_rc(high[0], high[1], of_upper), 0, lower), a[1], a[3]);
  }

 private:
  static constexpr int kValueStep = kSlotBytes / kQuad;

  // Asks for what expanding the four neighbours from bit `bit` on takes, ahead of their turn.
  __device__ __forceinline__ void look(int bit) {
    const uint32_t at = (place_ & ~(kSlotBytes - 1u)) | lane_.offset;
#pragma unroll
    for (int i = 0; i < 3; ++i) quads_[i] = ptx::load_shared_8(at - i * kSlotBytes);
    upper_ = __shfl_sync(~0u, lane_.selector, static_cast<int>(masks_.x >> bit), 16);
    lower_ = __shfl_sync(~0u, lane_.selector, static_cast<int>(masks_.y >> bit), 16);
  }
  __device__ static uint32_t back(uint32_t selector, uint32_t place) {
    return __dp4a(static_cast<int>(selector), -kValueStep << 24, static_cast<int>(place));
  }
  // Four values from their low and high bytes.
  __device__ static void put(uint32_t low, uint32_t high, uint32_t& first, uint32_t& second) {
    first = ptx::permute(low, high, 0x5140);
    second = ptx::permute(low, high, 0x7362);
  }

  uint2 masks_;
  QuadLane lane_;
  uint32_t bits_;   // eight for each value before: modulo 32, where in a quad the next ones begin
  uint32_t place_;  // of the quad, and below kSlotBytes what is left of it
  uint2 quads_[3];
  uint32_t upper_;
  uint32_t lower_;
};

}  // namespace espalier::cuda
