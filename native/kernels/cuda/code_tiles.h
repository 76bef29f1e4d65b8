// How 16 × 128 weights of 8 bits lie in memory for one warp of a GPU: what tile_codec.h is for bf16. A weight is its
// code, −127 … 127, times a scale of its row and 64 inputs.
//
// Four codes are a word: of two pairs, the magnitudes of the first in the low 7 bits of bytes 0 and 2, its signs on top
// of bytes 1 and 3; the second lies likewise when the word is rotated left by a byte. So a mask makes of either two
// bf16 numbers m · 2⁻¹³³ that one multiplication brings to where bf16 is accurate.
//
//   2:4    1344 bytes
//     2 × 512  for inputs 64v … 64v + 63: 16 bytes a lane, two words for each 32 inputs: registers 0 and 1 of the A
//              operand of mma.sp m16n8k32, then 2 and 3
//     256      64 bits a lane: the positions for v = 0 and v = 1, as in a tile of bf16
//     64       the scales of four lanes each: f16 of row g and row g + 8 for v = 0, then for v = 1
//   dense  2112 bytes
//     4 × 512  for inputs 32u … 32u + 31: 16 bytes a lane, its inputs 32u + 8t … 32u + 8t + 3 in row g and in
//              row g + 8, then the next four
//     64       scales
#pragma once

#include <cstdint>

#include "kernels/cuda/tile_codec.h"
#include "sparse/format.h"

namespace espalier::cuda {

inline constexpr int kTileGroups = kTileWidth / kGroup;
inline constexpr int kScaleBytes = 64;
inline constexpr int kTwoFourCodesBytes = 2 * 512 + 256 + kScaleBytes;
inline constexpr int kDenseCodesBytes = 4 * 512 + kScaleBytes;

struct CodeTile {
  int8_t at[kTileHeight][kTileWidth];
  uint16_t scales[kTileHeight][kTileGroups];  // f16
};

// Writes kDenseCodesBytes.
void encode_dense_codes(const CodeTile& tile, uint8_t* out);
void decode_dense_codes(const uint8_t* data, CodeTile& tile);

// Writes kTwoFourCodesBytes; false if four neighbours hold more than two codes that are not 0.
bool encode_two_four_codes(const CodeTile& tile, uint8_t* out);
// False if positions do not ascend.
bool decode_two_four_codes(const uint8_t* data, CodeTile& tile);

}  // namespace espalier::cuda
