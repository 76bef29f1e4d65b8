// Rows of an attention task that go through the cache together: as many as have their sums in registers.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

static_assert(kKvBlock == kVectorFloats, "the scores of a KV block are one vector");
static_assert(kKvChunk % kKvBlock == 0, "a chunk is whole blocks");

// Sums held in registers at once, of kVectorFloats each: half of the register file.
#if defined(__AVX512F__)
inline constexpr int kSums = 16;
#else
inline constexpr int kSums = 4;
#endif
inline constexpr int kTileMost = kSums < 8 ? kSums : 8;
inline constexpr int kScoreStride = kKvChunk + kKvBlock;  // not a power of two: rows lie in different cache sets
inline constexpr int kChunkBlocks = kKvChunk / kKvBlock;

// A query for int8 keys is (q₀ + q₁ / kFine) · scale, with q₀ and q₁ from −127 to 127.
inline constexpr float kFine = 254;
struct QueryParts {
  float scales[kTileMost];
  int32_t sums[2][kTileMost];  // Σ q₀, Σ q₁
};

// Some rows of a task. Keys count from the start of the chunk.
struct RowTile {
  int rows;
  int first_lo, first_hi;  // lowest and highest first key of a row
  int last_lo, last_hi;
  const float* queries;  // [head_dim][rows]; for int8 keys int8_t [2][ceil(head_dim / 4)][rows][4]
  QueryParts parts;
  float* scores;  // [rows][kScoreStride]
  float* mixed;   // [rows][partial stride]

  bool sees_block(int block) const { return first_lo < (block + 1) * kKvBlock && last_hi > block * kKvBlock; }
};

// Calls body(integral_constant) with the number of rows of a tile.
template <int R = kTileMost, class Body>
ESPALIER_INLINE void with_rows(int rows, const Body& body) {
  if constexpr (R > 1) {
    if (rows < R) return with_rows<R / 2>(rows, body);
  }
  body(std::integral_constant<int, R>{});
}

// Into L2: what is fetched is read only after as much again.
ESPALIER_INLINE void fetch(const void* line) { __builtin_prefetch(line, 0, 2); }

ESPALIER_INLINE int clamp_key(int64_t key) { return static_cast<int>(key < 0 ? 0 : (key > kKvChunk ? kKvChunk : key)); }

}  // namespace
}  // namespace espalier
