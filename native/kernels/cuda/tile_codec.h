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
//   n:32      256 + 128n bytes: of inputs 32t … 32t + 31, which one lane owns, each row stores n
//     256      64 bits a lane: which of these inputs are stored, row g, then row g + 8
//     n × 128  word i of lane l: in the low half the i-th stored value of row g, in the high half that of row g + 8
//   dense     4096 bytes
//     8 × 512  part 2u + h: 16 bytes a lane, its inputs 32u + 8t … 32u + 8t + 7 in row g + 8h
//   bitmap    a multiple of 16 bytes; masks as in n:32, of any count, but bit 8u + i is input 32u + 8t + i, so
//             that four lanes read neighbours of x
//     256      masks
//     F × 128  word i of lane l: its stored values 2i and 2i + 1, those of row g before those of row g + 8; all
//              tiles of a matrix have the same F, and a lane with fewer values pads with zeros
//     4 each   the words from F on, lane after lane
//
// A lane finds its values by counting bits from its own first one: one scan in 2048 weights says where the last words
// begin, and words i of all lanes lie in 32 different banks of shared memory.
#pragma once

#include <cstdint>

namespace espalier::cuda {

inline constexpr int kTileHeight = 16;
inline constexpr int kTileWidth = 128;
inline constexpr int kLanes = 32;
inline constexpr int kMaskBytes = 256;
inline constexpr int kSlotBytes = 4 * kLanes;
inline constexpr int kTwoFourBytes = 2304;
inline constexpr int kDenseBytes = 4096;
// Words of a lane that stores all of its 64 values.
inline constexpr int kMostSlots = 32;
// Words of a lane that are moved to their places at a time.
inline constexpr int kMoved = 12;

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

inline constexpr int balanced_bytes(int n) { return kMaskBytes + n * kSlotBytes; }
// Writes balanced_bytes(n); false if 32 neighbours hold more than n values. Where they hold fewer, zeros are stored.
bool encode_balanced(const Tile& tile, int n, uint8_t* out);
// False if a mask has another count than n.
bool decode_balanced(const uint8_t* data, int n, Tile& tile);

// Words that each lane's values take.
void bitmap_words(const Tile& tile, int (&words)[kLanes]);
void bitmap_words(const uint8_t* data, int (&words)[kLanes]);
// Bytes of a tile whose lanes have these words.
int bitmap_bytes(const int (&words)[kLanes], int prefix);
// Writes bitmap_bytes.
void encode_bitmap(const Tile& tile, int prefix, uint8_t* out);
// False if the masks do not ask for `bytes` bytes.
bool decode_bitmap(const uint8_t* data, int64_t bytes, int prefix, Tile& tile);

}  // namespace espalier::cuda
