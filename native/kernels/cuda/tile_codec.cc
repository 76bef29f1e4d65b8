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

// Where the low byte of value `i` of a run of quads lies that are `stride` bytes apart; the high one is kQuad on.
int value_at(int i, int stride) { return i / kQuad * stride + i % kQuad; }
void store_value(uint8_t* quads, int i, int stride, uint16_t value) {
  quads[value_at(i, stride)] = static_cast<uint8_t>(value);
  quads[value_at(i, stride) + kQuad] = static_cast<uint8_t>(value >> 8);
}
uint16_t load_value(const uint8_t* quads, int i, int stride) {
  const int at = value_at(i, stride);
  return static_cast<uint16_t>(quads[at] | quads[at + kQuad] << 8);
}

// Calls body(row, input) for the values of a lane's step that are stored, in order.
template <class Input, class Body>
void each_value(int lane, int step, const uint32_t (&masks)[2], const Input& input, const Body& body) {
  for (int half = 0; half < 2; ++half) {
    for (int i = 4 * step; i < 4 * step + 4; ++i) {
      if ((masks[half] >> i & 1u) != 0) body(row_of(lane, half), input(lane, i));
    }
  }
}

// The masks of a bitmap's tile, and how many values are stored before each of its steps.
struct BitmapPlan {
  uint32_t masks[kLanes][2];
  int before[kSteps + 1];

  explicit BitmapPlan(const Tile& tile) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < 2; ++half) masks[lane][half] = mask_of(tile, lane, half, bitmap_input);
    }
    count();
  }
  explicit BitmapPlan(const uint8_t* data) {
    for (int lane = 0; lane < kLanes; ++lane) load_masks(data + 2 * kSteps, lane, masks[lane]);
    count();
  }
  int bytes() const { return kBitmapHead + (before[kSteps] * 2 + 15) / 16 * 16; }
  // Calls body(index, row, input) for all stored values, in order.
  template <class Body>
  void each(const Body& body) const {
    int index = 0;
    for (int step = 0; step < kSteps; ++step) {
      for (int lane = 0; lane < kLanes; ++lane) {
        each_value(lane, step, masks[lane], bitmap_input, [&](int row, int k) { body(index++, row, k); });
      }
    }
  }

 private:
  void count() {
    before[0] = 0;
    for (int step = 0; step < kSteps; ++step) {
      before[step + 1] = before[step];
      for (const auto& [upper, lower] : masks) {
        before[step + 1] += std::popcount(upper >> (4 * step) & 15) + std::popcount(lower >> (4 * step) & 15);
      }
    }
  }
};

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
    store_masks(out, lane, masks);
    int index = 0;
    for (int step = 0; step < kSteps; ++step) {
      each_value(lane, step, masks, balanced_input, [&](int row, int k) {
        store_value(out + kMaskBytes + lane * kQuadBytes, index++, kSlotBytes, tile.at[row][k]);
      });
    }
  }
  return true;
}

bool decode_balanced(const uint8_t* data, int n, Tile& tile) {
  std::memset(&tile, 0, sizeof tile);
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t masks[2];
    load_masks(data, lane, masks);
    if (std::popcount(masks[0]) != n || std::popcount(masks[1]) != n) return false;
    int index = 0;
    for (int step = 0; step < kSteps; ++step) {
      each_value(lane, step, masks, balanced_input, [&](int row, int k) {
        tile.at[row][k] = load_value(data + kMaskBytes + lane * kQuadBytes, index++, kSlotBytes);
      });
    }
  }
  return true;
}

int bitmap_bytes(const Tile& tile) { return BitmapPlan(tile).bytes(); }

void encode_bitmap(const Tile& tile, uint8_t* out) {
  const BitmapPlan plan(tile);
  std::memset(out, 0, static_cast<size_t>(plan.bytes()));
  for (int step = 0; step < kSteps; ++step) {
    const auto begin = static_cast<uint16_t>(2 * plan.before[step]);
    std::memcpy(out + 2 * step, &begin, 2);
  }
  for (int lane = 0; lane < kLanes; ++lane) store_masks(out + 2 * kSteps, lane, plan.masks[lane]);
  plan.each([&](int index, int row, int k) { store_value(out + kBitmapHead, index, kQuadBytes, tile.at[row][k]); });
}

bool decode_bitmap(const uint8_t* data, int64_t bytes, Tile& tile) {
  std::memset(&tile, 0, sizeof tile);
  if (bytes < kBitmapHead) return false;
  const BitmapPlan plan(data);
  if (plan.bytes() != bytes) return false;
  for (int step = 0; step < kSteps; ++step) {
    uint16_t begin;
    std::memcpy(&begin, data + 2 * step, 2);
    if (begin != 2 * plan.before[step]) return false;
  }
  const auto room = static_cast<int>((bytes - kBitmapHead) / 2);
  for (int i = plan.before[kSteps]; i < room; ++i) {
    if (load_value(data + kBitmapHead, i, kQuadBytes) != 0) return false;
  }
  bool has_zeros = false;
  plan.each([&](int index, int row, int k) {
    tile.at[row][k] = load_value(data + kBitmapHead, index, kQuadBytes);
    has_zeros = has_zeros || tile.at[row][k] == 0;
  });
  return !has_zeros;
}

}  // namespace espalier::cuda
