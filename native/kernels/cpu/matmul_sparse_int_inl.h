// Products with bitmap and n:m int8 and int4 weights, where an instruction set expands bytes fast enough to gain from
// them. The including file defines, before this header, what matmul_int_inl.h wants and
//   Vu expand8(uint64_t mask, const uint8_t* bytes)   stored bytes at their places, 128 elsewhere
//   Vu expand_nibbles(uint64_t mask, const uint8_t* bytes, int shift)
//                                                     of stored bytes the high nibbles for a shift of 0, the low ones
//                                                     for 4, as 16 q + 128 at their places, 128 elsewhere
#pragma once

#include "kernels/cpu/matmul_int_inl.h"

namespace espalier {
namespace {

// Bytes ahead to prefetch, the best of 1 to 6 KB. A tile row is small enough to leave the inputs in L1: one at a time
// is faster than several.
inline constexpr int kSparsePrefetch = 3072;
inline constexpr int kInt8MaskPrefetch = 2048;
inline constexpr int kInt4MaskPrefetch = 4096;

inline const uint64_t* wide_masks(const PackedMatrix& weights, int64_t tile) {
  return reinterpret_cast<const uint64_t*>(weights.masks(tile));
}

struct SparseInt8 {
  static constexpr int kTiles = 1;
  static constexpr float kFactor = 1;
  static constexpr int64_t kRunGroups = 1;
  const uint8_t* bytes;
  const uint64_t* masks;

  static SparseInt8 of(const PackedMatrix& weights, int64_t tile) {
    return {weights.elements(tile), wide_masks(weights, tile)};
  }
  ESPALIER_INLINE Vu one() {
    const uint64_t mask = *masks++;
    const Vu v = expand8(mask, bytes);
    bytes += __builtin_popcountll(mask);
    return v;
  }
  template <int S>
  ESPALIER_INLINE void next(Vu& a, Vu& b, int pair) {
    if (pair % 4 == 0) prefetch(masks, kInt8MaskPrefetch);
    prefetch(bytes, kSparsePrefetch);
    a = one();
    prefetch(bytes, kSparsePrefetch);
    b = one();
  }
};

// Two groups share a run of bytes: it is read twice, the second time from L1.
struct SparseInt4 {
  static constexpr int kTiles = 1;
  static constexpr float kFactor = 1.0f / 16;
  static constexpr int64_t kRunGroups = 2;
  const uint8_t* bytes;  // the next element
  const uint64_t* masks;
  const uint8_t* run;        // where the run begins
  const uint8_t* first_end;  // where the elements of its first group end
  int shift;                 // 0 in the first group of a run, 4 in the second

  static SparseInt4 of(const PackedMatrix& weights, int64_t tile) {
    const uint8_t* bytes = weights.elements(tile);
    return {bytes, wide_masks(weights, tile), bytes, bytes, 4};
  }
  ESPALIER_INLINE void next_group() {
    shift ^= 4;
    if (shift == 0) {
      run = bytes > first_end ? bytes : first_end;
    } else {
      first_end = bytes;
    }
    bytes = run;
  }
  ESPALIER_INLINE Vu one() {
    if (shift == 0) prefetch(bytes, kSparsePrefetch);
    const uint64_t mask = *masks++;
    const Vu v = expand_nibbles(mask, bytes, shift);
    bytes += __builtin_popcountll(mask);
    return v;
  }
  template <int S>
  ESPALIER_INLINE void next(Vu& a, Vu& b, int pair) {
    if (pair == 0) next_group();
    if (pair % 4 == 0) prefetch(masks, kInt4MaskPrefetch);
    a = one();
    b = one();
  }
};

inline void sparse_int8(const MatmulTask& task) { multiply_int<SparseInt8, BufferedInt8>(task); }

inline void sparse_int4(const MatmulTask& task) { multiply_int<SparseInt4, BufferedInt4>(task); }

}  // namespace
}  // namespace espalier
