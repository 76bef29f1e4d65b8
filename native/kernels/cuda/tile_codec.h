// How 16 × 128 weights lie in memory for one warp of a GPU. bf16 values; stored is whatever is not +0.
//
// Lane l = 4g + t of a warp owns the rows g and g + 8, and of their 128 inputs those that mma's A operand wants of it.
// In a tile, each part is ordered so that the warp reads consecutive bytes.
//
//   2:4       2304 bytes
//     4 × 512  for inputs 32u … 32u + 31: 16 bytes a lane, the A registers of mma.sp m16n8k32
//     2 × 128  for inputs 64v … 64v + 63: 32 bits a lane, the positions that both its products want. Lanes of
//              t / 2 = 0 hold those of u = 2v, of t / 2 = 1 those of 2v + 1: row g in the low half, row g + 8 in the
//              high one
//   n:32      256 + 256 · ceil(n / 2) bytes: of inputs 32t … 32t + 31, which one lane owns, each row stores n
//     256      64 bits a lane: which of these inputs are stored, row g, then row g + 8
//     256 each the lanes' quads
//   dense     4096 bytes
//     8 × 512  part 2u + h: 16 bytes a lane, its inputs 32u + 8t … 32u + 8t + 7 in row g + 8h
//   bitmap    a multiple of 16 bytes; masks as in n:32, of any count, but bit 8u + i is input 32u + 8t + i, so
//             that four lanes read neighbours of x. Four neighbouring bits are a step: 4k … 4k + 3 are step k
//     8 × 2    twice the number of values stored before each step
//     256      masks
//     8 each   quads: the values of a step, lane after lane, follow those of the step before without a gap; zeros
//              behind the last one
//
// A quad is four stored values: their low bytes, then their high bytes, so that one permutation puts four of each where
// a mask's four bits say (quads.cuh). Of four neighbouring inputs of a lane, the values of row g come first, then those
// of row g + 8. In n:32, quads are a lane's own, and quads i of all lanes lie in banks of their own.
#pragma once

#include <cstdint>

namespace espalier::cuda {

inline constexpr int kTileHeight = 16;
inline constexpr int kTileWidth = 128;
inline constexpr int kLanes = 32;
inline constexpr int kMaskBytes = 256;
inline constexpr int kQuad = 4;  // values
inline constexpr int kQuadBytes = 2 * kQuad;
inline constexpr int kSlotBytes = kQuadBytes * kLanes;
inline constexpr int kTwoFourBytes = 2304;
inline constexpr int kDenseBytes = 4096;
// Steps of a bitmap's tile.
inline constexpr int kSteps = 8;
// What a bitmap's tile has before its quads.
inline constexpr int kBitmapHead = 2 * kSteps + kMaskBytes;
// Quads that expanding may read beyond a lane's last one.
inline constexpr int kQuadsBeyond = 3;

// bf16 bits, by row and input.
struct Tile {
  uint16_t at[kTileHeight][kTileWidth];
};

// Writes kDenseBytes.
void encode_dense(const Tile& tile, uint8_t* out);
void decode_dense(const uint8_t* data, Tile& tile);

// Writes kTwoFourBytes; false if four neighbours hold more than two values.
bool encode_two_four(const Tile& tile, uint8_t* out);
// False if positions do not ascend.
bool decode_two_four(const uint8_t* data, Tile& tile);

// Quads of a lane whose two rows store n values each.
constexpr int balanced_quads(int n) { return (2 * n + kQuad - 1) / kQuad; }
constexpr int balanced_bytes(int n) { return kMaskBytes + balanced_quads(n) * kSlotBytes; }
// Writes balanced_bytes(n); false if 32 neighbours hold more than n values. Where they hold fewer, zeros are stored.
bool encode_balanced(const Tile& tile, int n, uint8_t* out);
// False if a mask has another count than n.
bool decode_balanced(const uint8_t* data, int n, Tile& tile);

int bitmap_bytes(const Tile& tile);
// Writes bitmap_bytes.
void encode_bitmap(const Tile& tile, uint8_t* out);
// False if the masks do not ask for `bytes` bytes or for the steps' beginnings, if a value lies behind those that they
// ask for, or if one of these is a zero: a single wrong bit before the values never goes unseen.
bool decode_bitmap(const uint8_t* data, int64_t bytes, Tile& tile);

}  // namespace espalier::cuda
