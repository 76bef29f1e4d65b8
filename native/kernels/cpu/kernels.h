// The dispatch table: one set of functions for each instruction set. The engine asks cpu_kernels() and never branches
// on the instruction set or the weight format itself.
//
// Every function is single-threaded, and what it writes for one row (token) does not depend on the other rows of the
// call: a sequence gives the same bits alone or in a batch. A sparse product gives the bits of the dense product of the
// same matrix with its zeros in place. Inputs rounded to bf16 give the same bits with tiles and without (denormals
// apart, which matrix units take for zeros).
#pragma once

#include <cstdint>

#include "core/cpu_features.h"
#include "sparse/packed_matrix.h"

namespace espalier {

// Tokens of a tile of activations.
inline constexpr int kTileTokens = 16;

// Rows of activations as int8 for products with int8 and int4 weights: x ≈ q · scale in each group of kGroup inputs,
// with scale = max|x| / 127.
struct QuantisedRows {
  // [tokens][groups · kGroup], zeros in the padding; it and the scales can be read up to a multiple of kTileTokens.
  const int8_t* q;
  const float* scales;  // [tokens][groups]
  const int32_t* sums;  // [tokens][groups]: Σ q of the group
  int64_t groups;
};

// Most tile rows that products of few tokens read at once. A range of a multiple of them is fastest.
inline constexpr int kTilesAtOnce = 4;

// Inputs of a block: bf16 products sum over one at a time (see matmul_inl.h).
inline constexpr int kBlockInputs = 32;

// y[t][r] = Σ_k W[r][k] · x[t][k] for the rows r of tile rows [tile_begin, tile_end).
struct MatmulTask {
  const PackedMatrix& weights;
  int64_t tile_begin;
  int64_t tile_end;
  // float32 [tokens][x_stride]; for bf16 and f32 weights. Where cols is odd, x[t][cols] must be readable and zero.
  const float* x;
  int64_t x_stride;
  // The same inputs as bf16 tiles for sets that ask for them (see `tiled_tokens`), or nullptr; x is not read then.
  const uint16_t* tiles;
  const QuantisedRows* quantised;  // for int8 and int4 weights
  int64_t tokens;
  float* y;  // [tokens][y_stride], the first of them of row tile_begin · kTileRows
  int64_t y_stride;
};

// bf16 tiles of activations, 16 tokens × 32 inputs each, zeros in the padding, in the order that products read them:
// [block of kTileSteps steps of 32 inputs][pair of tiles of tokens][step][2][16][32], the last block with fewer steps.
struct TileLayout {
  static constexpr int64_t kTileSteps = 32;
  // Tokens of which a block stays in L2: 512 KB.
  static constexpr int64_t kChunkTokens = 256;
  static constexpr int64_t kElements = kTileTokens * kBlockInputs;

  int64_t pairs;
  int64_t steps;

  static TileLayout of(int64_t tokens, int64_t cols) {
    return {(tokens + 2 * kTileTokens - 1) / (2 * kTileTokens), (cols + kBlockInputs - 1) / kBlockInputs};
  }
  int64_t elements() const { return pairs * steps * 2 * kElements; }
  int64_t block_steps(int64_t block) const {
    const int64_t left = steps - block * kTileSteps;
    return left < kTileSteps ? left : kTileSteps;
  }
  // Where a pair's tiles of a block begin.
  int64_t offset(int64_t block, int64_t pair) const {
    return (pairs * block * kTileSteps + pair * block_steps(block)) * 2 * kElements;
  }
};

// bf16 and f32 weights: float32 products and sums. int8 and int4: exact integer sums within a group, float32 across.
using MatmulFn = void (*)(const MatmulTask& task);

// Tokens in a block of the KV cache; the width of the vector that scores them.
inline constexpr int kKvBlock = 16;
// Attention takes the keys of a sequence in chunks of this many, at multiples of it, whatever the number of threads.
inline constexpr int kKvChunk = 256;
// Most rows of one task of attention.
inline constexpr int kAttendRows = 32;

// What the cache holds keys and values as. kInt8: q · scale, with a scale for each token and KV head.
enum class KvType : uint8_t { kF32, kBf16, kInt8 };
inline constexpr int kKvTypes = 3;

// A KV head's keys of the tokens of a block are [head_dim][kKvBlock], its values [kKvBlock][head_dim]. kInt8: keys are
// [ceil(head_dim / 4)][kKvBlock][4] of q + 128 for the dot products of bytes, values q; behind both lie the float
// scales [kKvBlock].
constexpr int64_t kv_scales_offset(int64_t head_dim) { return (head_dim + 3) / 4 * 4 * kKvBlock; }
constexpr int64_t kv_block_bytes(KvType type, int64_t head_dim) {
  if (type == KvType::kInt8) return kv_scales_offset(head_dim) + kKvBlock * static_cast<int64_t>(sizeof(float));
  return head_dim * kKvBlock * (type == KvType::kF32 ? 4 : 2);
}

// A token's keys and values of one KV head on their way to `place` of a block: bf16 is rounded to nearest even; the
// scale of int8 is max|x| / 127, NaN where an element is not finite.
struct KvWrite {
  const float* key;    // [head_dim]
  const float* value;  // [head_dim]
  int head_dim;
  int64_t place;
  uint8_t* keys;  // kv_block_bytes(type, head_dim)
  uint8_t* values;
};

// One query head of one token: it sees the keys [first, last) of its sequence.
struct AttendRow {
  const float* query;  // [head_dim]
  int64_t first;
  int64_t last;
};

// Rows of one sequence that share a KV head, against the keys [chunk · kKvChunk, (chunk + 1) · kKvChunk). No key or
// value that none of the rows sees makes a difference; up to 64 bytes behind a value may be read. An int8 cache sees
// queries as whole numbers of max|q| / 32258, so that scores are exact sums.
struct AttendTask {
  const AttendRow* rows;
  int64_t count;          // 1 … kAttendRows
  const int32_t* blocks;  // block table of the sequence
  const uint8_t* keys;    // of block 0, already offset to this layer and KV head
  const uint8_t* values;
  int64_t block_stride;  // bytes from one block to the next
  int head_dim;
  float scale;  // of the scores
  int64_t chunk;
  float* scratch;   // attend_scratch_floats(head_dim)
  float* partials;  // one for each row: attend_partial_floats(head_dim), undefined where it sees none of the keys
  int64_t partial_stride;  // floats from a row's partial to the next row's
  // What this thread is likely to attend to next, so that its keys are on their way when it does; may be nullptr.
  const AttendTask* next = nullptr;
};

// A partial: Σ weight · value, padded to whole vectors; the maximum of the scores; the sum of the weights.
constexpr int64_t attend_partial_floats(int64_t head_dim) {
  return (head_dim + kKvBlock - 1) / kKvBlock * kKvBlock + kKvBlock;
}
constexpr int64_t attend_scratch_floats(int64_t head_dim) { return kAttendRows * (head_dim + kKvChunk + kKvBlock); }

struct CpuKernels {
  Isa isa;
  // [Storage][Values]; nullptr for a format that this set does not take (see `takes`).
  MatmulFn products[3][4];
  // Tokens from which products with bf16 weights want tiles; 0 for sets that never do.
  int64_t tiled_tokens = 0;
  // x rounded to bf16, to nearest even; out may be x.
  void (*round_row)(const float* x, int64_t n, float* out);
  // Likewise the tokens [32 · pair, 32 · pair + 32) of x [tokens][x_stride], into the pair's tiles.
  void (*fill_tiles)(const float* x, int64_t x_stride, int64_t tokens, int64_t cols, int64_t pair, uint16_t* tiles);
  // One row of `n` floats as QuantisedRows has it; writes ceil(n / kGroup) groups.
  void (*quantise_row)(const float* x, int64_t n, int8_t* q, float* scales, int32_t* sums);
  // out = x / sqrt(mean(x²) + epsilon) · weight
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float epsilon, float* out);
  // out = silu(gate) · up
  void (*silu_multiply)(const float* gate, const float* up, int64_t n, float* out);
  // Softmax in place.
  void (*softmax)(float* x, int64_t n);
  // 1 / (1 + exp(−x)) in place.
  void (*sigmoid)(float* x, int64_t n);
  // log Σ exp(x)
  double (*log_sum_exp)(const float* x, int64_t n);
  // y += a · x
  void (*axpy)(float a, const float* x, int64_t n, float* y);
  // Rotates element i with element i + half of each head by the angle of cosines[i] and sines[i] (RoPE).
  void (*rotate)(float* row, int64_t heads, int64_t half, const float* cosines, const float* sines);
  // [KvType]
  void (*write_kv[kKvTypes])(const KvWrite& task);
  void (*attend[kKvTypes])(const AttendTask& task);
  // out[head_dim] = a row's attention, of its partials for consecutive chunks, which lie `stride` floats apart and are
  // overwritten. NaN where the scores leave no maximum.
  void (*attend_combine)(float* partials, int64_t stride, int64_t chunks, int head_dim, float* out);

  MatmulFn matmul(const Format& format) const {
    return products[static_cast<int>(format.storage)][static_cast<int>(format.values)];
  }
  // Every set takes every dense format; a sparse one that would run slower than dense is left out.
  bool takes(const Format& format) const { return matmul(format) != nullptr; }
};

// The set that cpu_features().selected names.
const CpuKernels& cpu_kernels();
// The set of one instruction set, or nullptr where this build or processor lacks it.
const CpuKernels* cpu_kernels(Isa isa);

}  // namespace espalier
