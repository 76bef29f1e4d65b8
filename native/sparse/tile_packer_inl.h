// The tile packer on 64-byte vectors of GCC's extension. The file that includes this has defined, on such vectors,
//   nonzero16, nonzero8       which 16- or 8-bit lanes are not 0, as bits
//   compress16, compress8     the lanes that a mask names, moved to the front; behind them zeros, or `fill`
//   round_to_f16, store_f16   floats to the nearest f16 and back; 16 f16 to memory
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "sparse/tile_packer.h"
#include "sparse/tile_vector.h"

namespace espalier {
namespace {

// Inputs that are loaded and encoded together.
constexpr int kChunk = kGroup;

Vb to_bytes(Vu v) { return reinterpret_cast<Vb>(v); }

// Columns [col, col + kChunk) of 16 rows in 32-bit words, one row in each lane: out[w] lane r is word w of row r. Zeros
// where the matrix ends.
template <int kWords>
void load_words(const RowBlock& rows, int64_t col, Vu* out) {
  constexpr int kElement = kWords * 4 / kChunk;
  alignas(64) uint32_t words[kTileRows][kWords];
  const auto bytes = static_cast<size_t>(std::min<int64_t>(kChunk, rows.cols - col) * kElement);
  if (rows.count < kTileRows || bytes < sizeof words[0]) __builtin_memset(words, 0, sizeof words);
  if (bytes == sizeof words[0]) {
    for (int64_t r = 0; r < rows.count; ++r) __builtin_memcpy(words[r], rows.row(r) + col * kElement, sizeof words[0]);
  } else {
    for (int64_t r = 0; r < rows.count; ++r) __builtin_memcpy(words[r], rows.row(r) + col * kElement, bytes);
  }
  for (int w = 0; w < kWords; w += 16) transpose(&words[0][w], kWords, out + w);
}

// The weights of kChunk inputs, one row in each lane.
void load_weights(const RowBlock& rows, int64_t col, Vf* out) {
  Vu words[kChunk];
  if (rows.dtype == DType::kF32) {
    load_words<kChunk>(rows, col, words);
    for (int k = 0; k < kChunk; ++k) out[k] = reinterpret_cast<Vf>(words[k]);
    return;
  }
  load_words<kChunk / 2>(rows, col, words);
  for (int w = 0; w < kChunk / 2; ++w) {
    if (rows.dtype == DType::kBF16) {
      out[2 * w] = reinterpret_cast<Vf>(words[w] << 16);
      out[2 * w + 1] = reinterpret_cast<Vf>(words[w] & 0xffff0000u);
    } else {
      for (int r = 0; r < kTileRows; ++r) {
        out[2 * w][r] = f16_to_float(static_cast<uint16_t>(words[w][r]));
        out[2 * w + 1][r] = f16_to_float(static_cast<uint16_t>(words[w][r] >> 16));
      }
    }
  }
}

// float_to_bf16 of every lane.
Vu to_bf16(Vf value) {
  const Vu bits = reinterpret_cast<Vu>(value);
  const Vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? ((bits >> 16) | 0x40u) : rounded;
}

void encode_bf16(const RowBlock& rows, int64_t col, Vu* codes) {
  if (rows.dtype == DType::kBF16) {
    load_words<kChunk / 2>(rows, col, codes);
    return;
  }
  Vf weights[kChunk];
  load_weights(rows, col, weights);
  for (int v = 0; v < kChunk / 2; ++v) codes[v] = to_bf16(weights[2 * v]) | to_bf16(weights[2 * v + 1]) << 16;
}

struct Grid {
  float low;
  float high;
  int bias;
  int kept;  // set in the code of a weight that is not +0, so that no such code is 0
};
constexpr Grid kInt8 = {-127, 127, 128, 0};
constexpr Grid kInt4 = {-8, 7, 8, 16};

Vf magnitude(Vf v) { return reinterpret_cast<Vf>(reinterpret_cast<Vu>(v) & 0x7fffffffu); }

Vf inverse_of(Vf scale) { return scale == 0.0f ? Vf{} : 1.0f / scale; }

// weight / scale to the nearest integer of the grid, ties to even: adding 1.5 · 2²³ leaves no room for a fraction.
ESPALIER_TILE_INLINE Vf quantise(const Grid& grid, Vf weight, Vf inverse) {
  const Vf nearest = (weight * inverse + 12582912.0f) - 12582912.0f;
  const Vf raised = nearest < grid.low ? Vf{} + grid.low : nearest;
  return raised > grid.high ? Vf{} + grid.high : raised;
}

// The sum of squared errors of each row with these scales.
Vf squared_error(const Grid& grid, const Vf* weights, Vf scale) {
  const Vf inverse = inverse_of(scale);
  Vf partial[8] = {};  // eight sums, so that additions need not wait for each other
  for (int k = 0; k < kGroup; k += 8) {
    for (int i = 0; i < 8; ++i) {
      const Vf error = weights[k + i] - quantise(grid, weights[k + i], inverse) * scale;
      partial[i] += error * error;
    }
  }
  Vf total = partial[0];
  for (int i = 1; i < 8; ++i) total += partial[i];
  return total;
}

// Both the symmetric range and the one that uses −8, a little narrowed: clipping the largest can pay.
Vf int4_scale(const Vf* weights, Vf extreme) {
  constexpr float kNarrow[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f};
  Vf best = {};
  Vf least = Vf{} + INFINITY;
  for (const Vf full : {magnitude(extreme) / 7.0f, extreme / -8.0f}) {
    for (const float narrow : kNarrow) {
      const Vf scale = round_to_f16(full * narrow);
      const Vf error = squared_error(kInt4, weights, scale);
      best = error < least ? scale : best;
      least = error < least ? error : least;
    }
  }
  return best;
}

// A group of int8 or int4 codes, a byte each and 0 for a weight of +0, and the scales of the 16 rows.
void encode_group(const Grid& grid, const RowBlock& rows, int64_t col, Vu* codes, uint16_t* scales) {
  Vf weights[kGroup];
  load_weights(rows, col, weights);
  Vf extreme = {};
  for (const Vf weight : weights) extreme = magnitude(weight) > magnitude(extreme) ? weight : extreme;
  const Vf scale = &grid == &kInt8 ? round_to_f16(magnitude(extreme) / 127.0f) : int4_scale(weights, extreme);
  store_f16(scales, scale);
  const Vf inverse = inverse_of(scale);
  for (int v = 0; v < kGroup / 4; ++v) {
    Vu code = {};
    for (int k = 0; k < 4; ++k) {
      const Vf weight = weights[4 * v + k];
      const Vf q = quantise(grid, weight, inverse);
      // NOLINTNEXTLINE(misc-redundant-expression): NaN is not equal to itself
      const Vi whole = __builtin_convertvector(q == q ? q : Vf{}, Vi) + grid.bias;
      const Vu byte = (reinterpret_cast<Vu>(whole) | static_cast<uint32_t>(grid.kept)) << (8 * k);
      code |= reinterpret_cast<Vu>(weight) == 0 ? Vu{} : byte;
    }
    codes[v] = code;
  }
}

// How many elements of each row a vector stores.
Vu count_by_row(Values values, const uint32_t* mask) {
  if (values == Values::kBf16) {
    const Vu pair = (Vu{} + mask[0]) >> kPairShift & 3u;
    return pair - (pair >> 1);
  }
  Vu four;
  for (int r = 0; r < kTileRows; ++r) four[r] = mask[r / 8];
  four = four >> kFourShift & 15u;
  four -= four >> 1 & 5u;
  return (four & 3u) + (four >> 2);
}

// Makes the masks of an n:m format store exactly n of each m inputs: where there are fewer non-zeros, the first zeros
// too. False if there are more.
bool complete_groups(const Format& format, int64_t vectors, uint32_t* masks) {
  const int step = vector_step(format.values);
  const int words = is_quantised(format.values) ? 2 : 1;
  const int64_t per_group = format.m / step;
  const auto n = static_cast<uint32_t>(format.n);
  for (int64_t first = 0; first < vectors; first += per_group) {
    Vu kept = {};
    for (int64_t v = first; v < first + per_group; ++v) kept += count_by_row(format.values, masks + v * words);
    if (nonzero8(reinterpret_cast<Vu>(kept > n)) != 0) return false;
    if (nonzero8(reinterpret_cast<Vu>(kept < n)) == 0) continue;
    for (int r = 0; r < kTileRows; ++r) {
      uint32_t count = kept[r];
      for (int64_t i = 0; count < n; ++i) {
        const int bit = r * step + static_cast<int>(i % step);
        uint32_t& word = masks[(first + i / step) * words + bit / 32];
        count += (word >> (bit % 32) & 1u) ^ 1u;
        word |= 1u << (bit % 32);
      }
    }
  }
  return true;
}

uint64_t mask64(const uint32_t* words) { return words[0] | static_cast<uint64_t>(words[1]) << 32; }

constexpr int64_t kGroupVectors = kGroup / 4;  // of int8 and int4

// Elements that the masks of an int4 group ask for.
int64_t group_elements(const uint32_t* masks) {
  int64_t total = 0;
  for (int64_t i = 0; i < 2 * kGroupVectors; ++i) total += std::popcount(masks[i]);
  return total;
}

// Bytes that a group of int4 shares with the next one, or has alone where it is the last of a tile row.
int64_t run_bytes(const uint32_t* masks, bool is_last) {
  const int64_t first = group_elements(masks);
  return is_last ? first : std::max(first, group_elements(masks + 2 * kGroupVectors));
}

// The stored elements of a sparse int4 group into the high or the low nibbles of a run that is filled with zero codes.
void write_nibbles(const uint8_t* codes, const uint32_t* masks, bool low, uint8_t* out) {
  for (int64_t v = 0; v < kGroupVectors; ++v) {
    Vu code;
    Vb run;
    __builtin_memcpy(&code, codes + v * 64, sizeof code);
    __builtin_memcpy(&run, out, sizeof run);
    const uint64_t mask = mask64(masks + 2 * v);
    const Vb kept = to_bytes(compress8(8, mask, code));
    run = low ? (run & 0xf0) | kept : (run & 0x0f) | kept << 4;
    __builtin_memcpy(out, &run, sizeof run);
    out += std::popcount(mask);
  }
}

int64_t write_elements(const Format& format, int64_t vectors, const uint8_t* codes, const uint32_t* masks,
                       uint8_t* elements) {
  const auto code = [&](int64_t v) {
    Vu loaded;
    __builtin_memcpy(&loaded, codes + v * 64, sizeof loaded);
    return loaded;
  };
  uint8_t* out = elements;
  if (format.values == Values::kInt4 && format.storage == Storage::kDense) {
    for (int64_t v = 0; v < vectors; v += 2, out += 64) {
      const Vu both = code(v) << 4 | code(v + 1);
      __builtin_memcpy(out, &both, sizeof both);
    }
  } else if (format.values == Values::kInt4) {
    for (int64_t v = 0; v < vectors; v += 2 * kGroupVectors) {
      const bool is_last = v + kGroupVectors == vectors;
      const int64_t bytes = run_bytes(masks + 2 * v, is_last);
      __builtin_memset(out, 0x88, static_cast<size_t>(bytes) + 64);
      write_nibbles(codes + v * 64, masks + 2 * v, false, out);
      const int64_t next = v + kGroupVectors;
      if (!is_last) write_nibbles(codes + next * 64, masks + 2 * next, true, out);
      out += bytes;
    }
  } else if (format.values == Values::kInt8) {
    for (int64_t v = 0; v < vectors; ++v) {
      const uint64_t mask = mask64(masks + 2 * v);
      const Vu kept = compress8(0, mask, code(v));
      __builtin_memcpy(out, &kept, sizeof kept);
      out += std::popcount(mask);
    }
  } else {
    for (int64_t v = 0; v < vectors; ++v) {
      const Vu kept = compress16(masks[v], code(v));
      __builtin_memcpy(out, &kept, sizeof kept);
      out += std::popcount(masks[v]) * 2;
    }
  }
  return out - elements;
}

// Codes of kChunk inputs as they are stored, and where the weights are not +0.
void encode_chunk(const Format& format, const RowBlock& rows, int64_t col, int64_t count, Vu* codes, uint32_t* masks,
                  uint16_t* scales) {
  if (format.values == Values::kF32) {
    Vf weights[kChunk];
    load_weights(rows, col, weights);
    __builtin_memcpy(static_cast<void*>(codes), weights, static_cast<size_t>(count) * 64);
    return;
  }
  if (format.values == Values::kBf16) {
    encode_bf16(rows, col, codes);
    for (int64_t v = 0; v < count && masks != nullptr; ++v) masks[v] = nonzero16(codes[v]);
    return;
  }
  const bool is_int8 = format.values == Values::kInt8;
  encode_group(is_int8 ? kInt8 : kInt4, rows, col, codes, scales);
  for (int64_t v = 0; v < count; ++v) {
    if (masks != nullptr) {
      const uint64_t mask = nonzero8(codes[v]);
      masks[2 * v] = static_cast<uint32_t>(mask);
      masks[2 * v + 1] = static_cast<uint32_t>(mask >> 32);
    }
    const Vb bytes = to_bytes(codes[v]);
    const Vb stored = is_int8 ? (bytes == 0 ? Vb{} + 128 : bytes) : (bytes == 0 ? Vb{} + 8 : bytes & 15);
    codes[v] = reinterpret_cast<Vu>(stored);
  }
}

int64_t pack_tile(const Format& format, const RowBlock& rows, int64_t padded_cols, uint8_t* codes, uint8_t* elements,
                  uint32_t* masks, uint16_t* scales) {
  const int step = vector_step(format.values);
  const int words = is_quantised(format.values) ? 2 : 1;
  const int64_t vectors = padded_cols / step;
  const bool is_dense = format.storage == Storage::kDense;
  uint8_t* const to = is_dense && format.values != Values::kInt4 ? elements : codes;
  for (int64_t col = 0; col < padded_cols; col += kChunk) {
    const int64_t first = col / step;
    const int64_t count = std::min<int64_t>(kChunk / step, vectors - first);
    Vu chunk[kChunk];
    encode_chunk(format, rows, col, count, chunk, is_dense ? nullptr : masks + first * words,
                 is_quantised(format.values) ? scales + col / kGroup * kTileRows : nullptr);
    __builtin_memcpy(to + first * 64, chunk, static_cast<size_t>(count) * 64);
  }
  if (to == elements) return vectors * 64;
  if (format.storage == Storage::kNm && !complete_groups(format, vectors, masks)) return -1;
  return write_elements(format, vectors, codes, masks, elements);
}

void mark_row(DType dtype, Values values, const uint8_t* row, int64_t cols, uint64_t* bits) {
  for (int64_t col = 0; col < cols; col += 64, ++bits) {
    const int64_t count = std::min<int64_t>(64, cols - col);
    if (dtype == DType::kF32) {
      *bits = 0;
      for (int64_t k = 0; k < count; ++k) {
        const float value = load_float(dtype, row, col + k);
        const bool stored = values == Values::kBf16 ? float_to_bf16(value) != 0 : std::bit_cast<uint32_t>(value) != 0;
        *bits |= static_cast<uint64_t>(stored) << k;
      }
      continue;
    }
    // Neither f16 nor bf16 has a value that rounds to 0 as another type.
    Vu halves[2] = {};
    __builtin_memcpy(halves, row + col * 2, static_cast<size_t>(count) * 2);
    *bits = nonzero16(halves[0]) | static_cast<uint64_t>(nonzero16(halves[1])) << 32;
  }
}

int64_t stored_bytes(Values values, const uint32_t* masks, int64_t vectors) {
  int64_t total = 0;
  if (values == Values::kInt4) {
    for (int64_t v = 0; v < vectors; v += 2 * kGroupVectors) {
      total += run_bytes(masks + 2 * v, v + kGroupVectors == vectors);
    }
    return total;
  }
  const int64_t words = values == Values::kInt8 ? 2 * vectors : vectors;
  for (int64_t i = 0; i < words; ++i) total += std::popcount(masks[i]);
  return values == Values::kBf16 ? total * 2 : total;
}

constexpr TilePacker kTilePacker = {mark_row, pack_tile, stored_bytes};

}  // namespace
}  // namespace espalier
