// One tile row from elements of a checkpoint to stored bytes: the inner loops of packing, compiled once for each
// instruction set. All of them give the same bytes.
//
// int8: scale = max|w| / 127, q = w / scale to nearest. int4: the scale, of several near max|w| / 7 and −(w of largest
// magnitude) / 8, with the least squared error; of equal ones the first. Scales are rounded to f16 before they are
// used; a NaN becomes q = 0.
#pragma once

#include <cstdint>

#include "core/cpu_features.h"
#include "sparse/matrix_source.h"

namespace espalier {

struct TilePacker {
  // Bit k & 63 of word k >> 6: whether element k of a row is stored as something else than +0. Writes
  // ceil(cols / 64) words; bits past the last column are 0.
  void (*mark_row)(DType dtype, Values values, const uint8_t* row, int64_t cols, uint64_t* bits);

  // Packs a tile row of `padded_cols` inputs; returns the bytes of its elements, or −1 where a group of an n:m format
  // has more than n non-zeros. `codes` is scratch of vectors × 64 bytes. `elements` needs 64 bytes of slack behind what
  // is stored, for dense none. `masks` is not touched for dense, `scales` for bf16 and f32.
  int64_t (*pack)(const Format& format, const RowBlock& rows, int64_t padded_cols, uint8_t* codes, uint8_t* elements,
                  uint32_t* masks, uint16_t* scales);

  // Bytes of elements that the masks of so many vectors ask for; of int4 they are whole groups.
  int64_t (*stored_bytes)(Values values, const uint32_t* masks, int64_t vectors);
};

// The one for cpu_features().selected.
const TilePacker& tile_packer();
// The one of an instruction set, or nullptr where this build or processor lacks it.
const TilePacker* tile_packer(Isa isa);

}  // namespace espalier
