#include "kernels/cuda/tile_codec.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cuda/tile_places.h"

namespace espalier::cuda {
namespace {

// Inputs of a lane's mask.
constexpr int kRun = 32;

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

void store_masks(uint8_t* out, int lane, const uint32_t (&masks)[2]) { std::memcpy(out + lane * 8, masks, 8); }
void load_masks(const uint8_t* data, int lane, uint32_t (&masks)[2]) { std::memcpy(masks, data + lane * 8, 8); }

// The stored values of a lane, as quads.
struct LaneValues {
  uint16_t at[kQuad * kMostSlots] = {};

  void store(int quad, uint8_t* out) const {
    for (int i = 0; i < kQuad; ++i) {
      const uint16_t value = at[quad * kQuad + i];
      out[i] = static_cast<uint8_t>(value);
      out[kQuad + i] = static_cast<uint8_t>(value >> 8);
    }
  }
  void load(int quad, const uint8_t* data) {
    for (int i = 0; i < kQuad; ++i) at[quad * kQuad + i] = static_cast<uint16_t>(data[i] | data[kQuad + i] << 8);
  }
};

// Calls body(row, input) for the stored values of a lane, in order.
template <class Input, class Body>
void each_value(int lane, const uint32_t (&masks)[2], const Input& input, const Body& body) {
  for (int four = 0; four < kRun; four += 4) {
    for (int half = 0; half < 2; ++half) {
      for (int i = four; i < four + 4; ++i) {
        if ((masks[half] >> i & 1u) != 0) body(row_of(lane, half), input(lane, i));
      }
    }
  }
}

template <class Input>
LaneValues take_values(const Tile& tile, int lane, const uint32_t (&masks)[2], const Input& input) {
  LaneValues values;
  int count = 0;
  each_value(lane, masks, input, [&](int row, int k) { values.at[count++] = tile.at[row][k]; });
  return values;
}

template <class Input>
void put_values(const LaneValues& values, int lane, const uint32_t (&masks)[2], const Input& input, Tile& tile) {
  int count = 0;
  each_value(lane, masks, input, [&](int row, int k) { tile.at[row][k] = values.at[count++]; });
}

int quads_of(const uint32_t (&masks)[2]) {
  return (std::popcount(masks[0]) + std::popcount(masks[1]) + kQuad - 1) / kQuad;
}

// Where quad `i` of `count` in fixed places lies.
int quad_at(int lane, int i, int count) { return kMaskBytes + (count - 1 - i) * kSlotBytes + lane * kQuadBytes; }

// Calls body(lane, i, at) for the quads of a bitmap's tile, and the padding among the first `prefix`.
template <class Body>
void each_quad(const int (&quads)[kLanes], int prefix, const Body& body) {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < prefix; ++i) body(lane, i, quad_at(lane, i, prefix));
  }
  int at = kMaskBytes + prefix * kSlotBytes;
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = prefix; i < quads[lane]; ++i, at += kQuadBytes) body(lane, i, at);
  }
}

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
  std::memset(out, 0, static_cast<size_t>(balanced_bytes(n)));
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t masks[2];
    for (int half = 0; half < 2; ++half) {
      masks[half] = mask_of(tile, lane, half, balanced_input);
      if (std::popcount(masks[half]) > n) return false;
      // Stores the first zeros too, up to n values.
      while (std::popcount(masks[half]) < n) masks[half] |= ~masks[half] & (masks[half] + 1);
    }
    const LaneValues values = take_values(tile, lane, masks, balanced_input);
    store_masks(out, lane, masks);
    for (int i = 0; i < balanced_quads(n); ++i) values.store(i, out + quad_at(lane, i, balanced_quads(n)));
  }
  return true;
}

bool decode_balanced(const uint8_t* data, int n, Tile& tile) {
  std::memset(&tile, 0, sizeof tile);
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t masks[2];
    load_masks(data, lane, masks);
    if (std::popcount(masks[0]) != n || std::popcount(masks[1]) != n) return false;
    LaneValues values;
    for (int i = 0; i < balanced_quads(n); ++i) values.load(i, data + quad_at(lane, i, balanced_quads(n)));
    put_values(values, lane, masks, balanced_input, tile);
  }
  return true;
}

void bitmap_quads(const Tile& tile, int (&quads)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    quads[lane] = quads_of({mask_of(tile, lane, 0, bitmap_input), mask_of(tile, lane, 1, bitmap_input)});
  }
}

void bitmap_quads(const uint8_t* data, int (&quads)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t masks[2];
    load_masks(data, lane, masks);
    quads[lane] = quads_of(masks);
  }
}

int bitmap_bytes(const int (&quads)[kLanes], int prefix) {
  int late = 0;
  for (const int count : quads) late += std::max(count - prefix, 0);
  return kMaskBytes + prefix * kSlotBytes + (late * kQuadBytes + 15) / 16 * 16;
}

void encode_bitmap(const Tile& tile, int prefix, uint8_t* out) {
  int quads[kLanes];
  bitmap_quads(tile, quads);
  std::memset(out, 0, static_cast<size_t>(bitmap_bytes(quads, prefix)));
  LaneValues values[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t masks[2] = {mask_of(tile, lane, 0, bitmap_input), mask_of(tile, lane, 1, bitmap_input)};
    store_masks(out, lane, masks);
    values[lane] = take_values(tile, lane, masks, bitmap_input);
  }
  each_quad(quads, prefix, [&](int lane, int i, int at) { values[lane].store(i, out + at); });
}

bool decode_bitmap(const uint8_t* data, int64_t bytes, int prefix, Tile& tile) {
  std::memset(&tile, 0, sizeof tile);
  if (bytes < kMaskBytes + prefix * kSlotBytes) return false;
  int quads[kLanes];
  bitmap_quads(data, quads);
  if (bitmap_bytes(quads, prefix) != bytes) return false;
  LaneValues values[kLanes];
  each_quad(quads, prefix, [&](int lane, int i, int at) { values[lane].load(i, data + at); });
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t masks[2];
    load_masks(data, lane, masks);
    put_values(values[lane], lane, masks, bitmap_input, tile);
  }
  return true;
}

}  // namespace espalier::cuda
