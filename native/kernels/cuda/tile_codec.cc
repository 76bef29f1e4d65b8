#include "kernels/cuda/tile_codec.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/tile_places.h"

namespace espalier::cuda {
namespace {

// Inputs of a lane's mask.
constexpr int kRun = 32;

uint32_t load32(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}

void store32(uint8_t* at, uint32_t value) { std::memcpy(at, &value, 4); }

// The input of bit `bit` of a lane's masks.
int balanced_input(int lane, int bit) { return lane % 4 * kRun + bit; }
int bitmap_input(int lane, int bit) { return bit / 8 * kRun + lane % 4 * 8 + bit % 8; }

// The mask of the inputs that a lane owns in one of its rows.
template <class Input>
uint32_t mask_of(const Tile& tile, int lane, int half, const Input& input) {
  uint32_t mask = 0;
  for (int i = 0; i < kRun; ++i) mask |= static_cast<uint32_t>(tile.at[row_of(lane, half)][input(lane, i)] != 0) << i;
  return mask;
}

// Where a lane's mask of one row lies.
int mask_at(int lane, int half) { return lane * 8 + half * 4; }

// Where the positions of the 8 groups of four in row `row` and 32 inputs u begin: 4 groups in each 16 bits.
int positions_at(int row, int u, int half) {
  return 4 * 512 + u / 2 * 128 + positions_lane(row, u, half) * 4 + row / 8 * 2;
}

}  // namespace

void encode_dense(const Tile& tile, uint8_t* out) {
  for (int part = 0; part < 8; ++part) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const DenseRun run = dense_run(part, lane);
      std::memcpy(out + part * 512 + lane * 16, &tile.at[run.row][run.input], 16);
    }
  }
}

void decode_dense(const uint8_t* data, Tile& tile) {
  for (int part = 0; part < 8; ++part) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const DenseRun run = dense_run(part, lane);
      std::memcpy(&tile.at[run.row][run.input], data + part * 512 + lane * 16, 16);
    }
  }
}

bool encode_two_four(const Tile& tile, uint8_t* out) {
  std::memset(out, 0, kTwoFourBytes);
  for (int u = 0; u < 4; ++u) {
    Halved<uint16_t> kept[kTileHeight];
    for (int row = 0; row < kTileHeight; ++row) {
      if (!halve(tile.at[row] + u * 32, kept[row])) return false;
      store_positions(out, kept[row].positions, [&](int half) { return positions_at(row, u, half); });
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int j = 0; j < 4; ++j) {
        const Fragment from = fragment(lane, j);
        std::memcpy(out + u * 512 + lane * 16 + j * 4, &kept[from.row].values[from.value], 4);
      }
    }
  }
  return true;
}

bool decode_two_four(const uint8_t* data, Tile& tile) {
  std::memset(&tile, 0, sizeof tile);
  for (int u = 0; u < 4; ++u) {
    Halved<uint16_t> kept[kTileHeight];
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int j = 0; j < 4; ++j) {
        const Fragment to = fragment(lane, j);
        std::memcpy(&kept[to.row].values[to.value], data + u * 512 + lane * 16 + j * 4, 4);
      }
    }
    for (int row = 0; row < kTileHeight; ++row) {
      kept[row].positions = load_positions(data, [&](int half) { return positions_at(row, u, half); });
      if (!restore(kept[row], tile.at[row] + u * 32)) return false;
    }
  }
  return true;
}

bool encode_balanced(const Tile& tile, int n, uint8_t* out) {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int half = 0; half < 2; ++half) {
      uint32_t mask = mask_of(tile, lane, half, balanced_input);
      if (std::popcount(mask) > n) return false;
      // Stores the first zeros too, up to n values.
      while (std::popcount(mask) < n) mask |= ~mask & (mask + 1);
      store32(out + mask_at(lane, half), mask);
      const uint16_t* row = tile.at[row_of(lane, half)];
      uint8_t* to = out + kMaskBytes + lane * 4 + half * 2;
      for (int i = 0; i < kRun; ++i) {
        if ((mask >> i & 1u) == 0) continue;
        std::memcpy(to, row + balanced_input(lane, i), 2);
        to += kSlotBytes;
      }
    }
  }
  return true;
}

bool decode_balanced(const uint8_t* data, int n, Tile& tile) {
  std::memset(&tile, 0, sizeof tile);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int half = 0; half < 2; ++half) {
      const uint32_t mask = load32(data + mask_at(lane, half));
      if (std::popcount(mask) != n) return false;
      uint16_t* row = tile.at[row_of(lane, half)];
      const uint8_t* from = data + kMaskBytes + lane * 4 + half * 2;
      for (int i = 0; i < kRun; ++i) {
        if ((mask >> i & 1u) == 0) continue;
        std::memcpy(row + balanced_input(lane, i), from, 2);
        from += kSlotBytes;
      }
    }
  }
  return true;
}

void bitmap_words(const Tile& tile, int (&words)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    words[lane] = (std::popcount(mask_of(tile, lane, 0, bitmap_input)) +
                   std::popcount(mask_of(tile, lane, 1, bitmap_input)) + 1) /
                  2;
  }
}

void bitmap_words(const uint8_t* data, int (&words)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    words[lane] =
        (std::popcount(load32(data + mask_at(lane, 0))) + std::popcount(load32(data + mask_at(lane, 1))) + 1) / 2;
  }
}

int bitmap_bytes(const int (&words)[kLanes], int prefix) {
  int tail = 0;
  for (const int count : words) tail += std::max(count - prefix, 0);
  return kMaskBytes + prefix * kSlotBytes + (tail * 4 + 15) / 16 * 16;
}

void encode_bitmap(const Tile& tile, int prefix, uint8_t* out) {
  int words[kLanes];
  bitmap_words(tile, words);
  std::memset(out, 0, static_cast<size_t>(bitmap_bytes(words, prefix)));
  uint8_t* tail = out + kMaskBytes + prefix * kSlotBytes;
  for (int lane = 0; lane < kLanes; ++lane) {
    uint16_t values[2 * kMostSlots] = {};
    int count = 0;
    for (int half = 0; half < 2; ++half) {
      store32(out + mask_at(lane, half), mask_of(tile, lane, half, bitmap_input));
      const uint16_t* row = tile.at[row_of(lane, half)];
      for (int i = 0; i < kRun; ++i) {
        if (row[bitmap_input(lane, i)] != 0) values[count++] = row[bitmap_input(lane, i)];
      }
    }
    for (int i = 0; i < words[lane]; ++i) {
      uint8_t* to = i < prefix ? out + kMaskBytes + i * kSlotBytes + lane * 4 : tail;
      if (i >= prefix) tail += 4;
      std::memcpy(to, values + 2 * i, 4);
    }
  }
}

bool decode_bitmap(const uint8_t* data, int64_t bytes, int prefix, Tile& tile) {
  std::memset(&tile, 0, sizeof tile);
  if (bytes < kMaskBytes + prefix * kSlotBytes) return false;
  int words[kLanes];
  bitmap_words(data, words);
  if (bitmap_bytes(words, prefix) != bytes) return false;
  const uint8_t* tail = data + kMaskBytes + prefix * kSlotBytes;
  for (int lane = 0; lane < kLanes; ++lane) {
    uint16_t values[2 * kMostSlots] = {};
    for (int i = 0; i < words[lane]; ++i) {
      const uint8_t* from = i < prefix ? data + kMaskBytes + i * kSlotBytes + lane * 4 : tail;
      if (i >= prefix) tail += 4;
      std::memcpy(values + 2 * i, from, 4);
    }
    int count = 0;
    for (int half = 0; half < 2; ++half) {
      const uint32_t mask = load32(data + mask_at(lane, half));
      uint16_t* row = tile.at[row_of(lane, half)];
      for (int i = 0; i < kRun; ++i) {
        if ((mask >> i & 1u) != 0) row[bitmap_input(lane, i)] = values[count++];
      }
    }
  }
  return true;
}

}  // namespace espalier::cuda
