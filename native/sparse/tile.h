// One tile row between floats and stored elements: the arithmetic that the value types differ in.
#pragma once

#include <cstdint>
#include <vector>

#include "sparse/packed_matrix.h"

namespace espalier {

// A tile row as codes, one for each element of each vector in vector order: a code is what is stored, before masks drop
// some and int4 shares bytes. f32 and bf16: the bits. int8: q + 128. int4: q + 8.
struct Tile {
  std::vector<uint32_t> codes;   // [vectors][64 / element bytes]; 64 for int4 too
  std::vector<uint8_t> nonzero;  // 1 where the weight is not +0
  std::vector<uint16_t> scales;  // f16 [groups][16]
};

// Elements of a vector.
inline int vector_lanes(Values values) { return kTileRows * vector_step(values); }

// The code of a weight that is not stored.
inline uint32_t zero_code(Values values) { return values == Values::kInt8 ? 128 : values == Values::kInt4 ? 8 : 0; }

// Fills `nonzero` from the 16 rows of a tile row, [16][padded_cols] floats with zeros in the padding.
void mark_nonzero(Values values, int64_t padded_cols, const float* rows, Tile& tile);

// Fills `codes` and `scales` likewise. int8: scale = max|w| / 127, q = w / scale to nearest. int4: the scale, of
// several near max|w| / 7 and −(w of largest magnitude) / 8, with the least squared error.
void encode_tile(Values values, int64_t padded_cols, const float* rows, Tile& tile);

// The weight that a code of row r in group g stands for.
float decode(Values values, uint32_t code, const uint16_t* scales, int64_t group, int row);

}  // namespace espalier
