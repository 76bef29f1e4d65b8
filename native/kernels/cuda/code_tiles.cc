#include "kernels/cuda/code_tiles.h"

#include <cstdlib>
#include <cstring>

#include "kernels/cuda/tile_places.h"

namespace espalier::cuda {
namespace {

// Two codes, where a mask leaves the upper bytes of two bf16 numbers.
uint32_t join_pair(int8_t first, int8_t second) {
  const auto half = [](int8_t code) { return static_cast<uint32_t>(std::abs(code)) | (code < 0 ? 0x8000u : 0u); };
  return half(first) | half(second) << 16;
}
uint32_t join(const int8_t (&codes)[4]) {
  const uint32_t second = join_pair(codes[2], codes[3]);
  return join_pair(codes[0], codes[1]) | (second >> 8 | second << 24);
}
void split(uint32_t word, int8_t (&codes)[4]) {
  const uint32_t rotated = word << 8 | word >> 24;
  for (int i = 0; i < 4; ++i) {
    const uint32_t half = (i < 2 ? word : rotated) >> (16 * (i % 2));
    const auto magnitude = static_cast<int>(half & 0x7fu);
    codes[i] = static_cast<int8_t>((half & 0x8000u) != 0 ? -magnitude : magnitude);
  }
}

void encode_scales(const CodeTile& tile, uint8_t* out) {
  for (int row = 0; row < kTileHeight; ++row) {
    for (int v = 0; v < kTileGroups; ++v) {
      std::memcpy(out + row % 8 * 8 + v * 4 + row / 8 * 2, &tile.scales[row][v], 2);
    }
  }
}
void decode_scales(const uint8_t* data, CodeTile& tile) {
  for (int row = 0; row < kTileHeight; ++row) {
    for (int v = 0; v < kTileGroups; ++v) {
      std::memcpy(&tile.scales[row][v], data + row % 8 * 8 + v * 4 + row / 8 * 2, 2);
    }
  }
}

constexpr int kPositionsAt = 2 * 512;
// Where the positions of four groups of four begin.
int positions_at(int row, int u, int half) {
  return kPositionsAt + positions_lane(row, u, half) * 8 + u / 2 * 4 + row / 8 * 2;
}
// Where word `word` of two of a lane for 32 inputs u lies.
int word_at(int lane, int u, int word) { return u / 2 * 512 + lane * 16 + u % 2 * 8 + word * 4; }

}  // namespace

void encode_dense_codes(const CodeTile& tile, uint8_t* out) {
  for (int part = 0; part < 8; ++part) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const DenseRun run = dense_run(part, lane);
      for (int half = 0; half < 2; ++half) {
        int8_t codes[4];
        std::memcpy(codes, &tile.at[run.row][run.input + 4 * half], 4);
        const uint32_t word = join(codes);
        std::memcpy(out + part / 2 * 512 + lane * 16 + half * 8 + part % 2 * 4, &word, 4);
      }
    }
  }
  encode_scales(tile, out + kDenseCodesBytes - kScaleBytes);
}

void decode_dense_codes(const uint8_t* data, CodeTile& tile) {
  for (int part = 0; part < 8; ++part) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const DenseRun run = dense_run(part, lane);
      for (int half = 0; half < 2; ++half) {
        uint32_t word;
        std::memcpy(&word, data + part / 2 * 512 + lane * 16 + half * 8 + part % 2 * 4, 4);
        int8_t codes[4];
        split(word, codes);
        std::memcpy(&tile.at[run.row][run.input + 4 * half], codes, 4);
      }
    }
  }
  decode_scales(data + kDenseCodesBytes - kScaleBytes, tile);
}

bool encode_two_four_codes(const CodeTile& tile, uint8_t* out) {
  for (int u = 0; u < 4; ++u) {
    Halved<int8_t> kept[kTileHeight];
    for (int row = 0; row < kTileHeight; ++row) {
      if (!halve(tile.at[row] + u * 32, kept[row])) return false;
      store_positions(out, kept[row].positions, [&](int half) { return positions_at(row, u, half); });
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int word = 0; word < 2; ++word) {
        int8_t codes[4];
        for (int j = 0; j < 2; ++j) {
          const Fragment from = fragment(lane, 2 * word + j);
          std::memcpy(codes + 2 * j, &kept[from.row].values[from.value], 2);
        }
        const uint32_t joined = join(codes);
        std::memcpy(out + word_at(lane, u, word), &joined, 4);
      }
    }
  }
  encode_scales(tile, out + kTwoFourCodesBytes - kScaleBytes);
  return true;
}

bool decode_two_four_codes(const uint8_t* data, CodeTile& tile) {
  std::memset(tile.at, 0, sizeof tile.at);
  for (int u = 0; u < 4; ++u) {
    Halved<int8_t> kept[kTileHeight];
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int word = 0; word < 2; ++word) {
        uint32_t joined;
        std::memcpy(&joined, data + word_at(lane, u, word), 4);
        int8_t codes[4];
        split(joined, codes);
        for (int j = 0; j < 2; ++j) {
          const Fragment to = fragment(lane, 2 * word + j);
          std::memcpy(&kept[to.row].values[to.value], codes + 2 * j, 2);
        }
      }
    }
    for (int row = 0; row < kTileHeight; ++row) {
      kept[row].positions = load_positions(data, [&](int half) { return positions_at(row, u, half); });
      if (!restore(kept[row], tile.at[row] + u * 32)) return false;
    }
  }
  decode_scales(data + kTwoFourCodesBytes - kScaleBytes, tile);
  return true;
}

}  // namespace espalier::cuda
