// Products with bitmap and n:m int8 and int4 weights, where an instruction set expands bytes fast enough to gain from
// them. The including file defines, before this header, what matmul_int_inl.h wants and
//   Vu expand8(uint64_t mask, const uint8_t* bytes)   stored bytes at their places, 128 elsewhere
//   Vu expand_nibbles(uint64_t mask, const uint8_t* bytes, bool low)   their high or low nibbles, as 16 q + 128
#pragma once

#include "kernels/cpu/matmul_int_inl.h"

namespace espalier {
namespace {

ESPALIER_INLINE void prefetch(const void* at) {
  __builtin_prefetch(static_cast<const char*>(at) + kSparsePrefetch);
}

struct SparseInt8 {
  static constexpr float kFactor = 1;
  const uint8_t* bytes;
  const uint64_t* masks;

  ESPALIER_INLINE Vu one() {
    const uint64_t mask = *masks++;
    const Vu v = expand8(mask, bytes);
    bytes += __builtin_popcountll(mask);
    return v;
  }
  ESPALIER_INLINE void next(Vu& a, Vu& b, int pair) {
    if (pair % 4 == 0) prefetch(masks);
    prefetch(bytes);
    a = one();
    prefetch(bytes);
    b = one();
  }
};

struct SparseInt4 {
  static constexpr float kFactor = 1.0f / 16;
  const uint8_t* bytes;
  const uint64_t* masks;

  ESPALIER_INLINE void next(Vu& a, Vu& b, int pair) {
    if (pair % 4 == 0) prefetch(masks);
    prefetch(bytes);
    const uint64_t first = masks[0];
    const uint64_t second = masks[1];
    masks += 2;
    a = expand_nibbles(first, bytes, false);
    b = expand_nibbles(second, bytes, true);
    const int in_first = __builtin_popcountll(first);
    const int in_second = __builtin_popcountll(second);
    bytes += in_first > in_second ? in_first : in_second;
  }
};

const uint64_t* wide_masks(const PackedMatrix& weights, int64_t tile) {
  return reinterpret_cast<const uint64_t*>(weights.masks(tile));
}

void sparse_int8(const MatmulTask& task) {
  multiply_int<DenseInt8>(task, true, [&](int64_t tile) {
    return SparseInt8{task.weights.elements(tile), wide_masks(task.weights, tile)};
  });
}

void sparse_int4(const MatmulTask& task) {
  multiply_int<ExpandedInt4>(task, true, [&](int64_t tile) {
    return SparseInt4{task.weights.elements(tile), wide_masks(task.weights, tile)};
  });
}

}  // namespace
}  // namespace espalier
