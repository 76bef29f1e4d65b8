#include "kernels/cuda/tiled_weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "kernels/cuda/tile_range.h"

namespace espalier::cuda {
namespace {

// What a bitmap's tile has beyond its last value, on average.
constexpr double kTailBytes = 8;
// A bitmap's product takes so many times what reading its bytes does (bench/RESULTS.md).
constexpr double kBitmapTime = 1.3;
// Share of the dense bytes below which n:32 is worth its decoding.
constexpr double kBalancedGain = 0.9;

// Rows [16 · row_tile, …) of a matrix as bf16 bits, padded.
struct RowTile {
  std::vector<uint16_t> bits;
  std::vector<float> scratch;
  int64_t width = 0;

  void read(const MatrixSource& source, int64_t row_tile) {
    width = (source.cols() + kTileWidth - 1) / kTileWidth * kTileWidth;
    bits.assign(static_cast<size_t>(kTileHeight * width), 0);
    const RowBlock block = source.tile(row_tile, scratch);
    for (int64_t r = 0; r < block.count; ++r) {
      for (int64_t k = 0; k < block.cols; ++k) {
        uint16_t& to = bits[static_cast<size_t>(r * width + k)];
        if (block.dtype == DType::kBF16) {
          std::memcpy(&to, block.row(r) + 2 * k, 2);
        } else {
          to = float_to_bf16(load_float(block.dtype, block.row(r), k));
        }
      }
    }
  }
  void tile(int64_t col_tile, Tile& out) const {
    for (int r = 0; r < kTileHeight; ++r) {
      std::memcpy(out.at[r], bits.data() + r * width + col_tile * kTileWidth, sizeof out.at[r]);
    }
  }
};

// Calls body(index, tile) for every tile of all matrices; one call of `body` has one thread.
template <class Body>
void each_tile(ThreadPool& pool, std::span<const MatrixSource> matrices, const TiledWeights& weights,
               const Body& body) {
  const int64_t row_tiles = weights.row_tiles();
  pool.parallel_for(weights.count * row_tiles, 4, [&](int64_t begin, int64_t end) {
    RowTile rows;
    Tile tile;
    for (int64_t i = begin; i < end; ++i) {
      rows.read(matrices[static_cast<size_t>(i / row_tiles)], i % row_tiles);
      for (int64_t c = 0; c < weights.col_tiles(); ++c) {
        rows.tile(c, tile);
        body(i * weights.col_tiles() + c, tile);
      }
    }
  });
}

// False if the tile does not fit a layout of fixed size.
bool encode_fixed(const TiledWeights& weights, const Tile& tile, uint8_t* out) {
  switch (weights.layout) {
    case TileLayout::kDense: encode_dense(tile, out); return true;
    case TileLayout::kTwoFour: return encode_two_four(tile, out);
    default: return encode_balanced(tile, weights.n, out);
  }
}

void raise(std::atomic<int>& most, int value) {
  int seen = most.load(std::memory_order_relaxed);
  while (value > seen && !most.compare_exchange_weak(seen, value)) {
  }
}

// The weights that a tile holds.
struct Weights {
  float at[kTileHeight][kTileWidth];

  void take(const Tile& tile) {
    for (int r = 0; r < kTileHeight; ++r) {
      for (int k = 0; k < kTileWidth; ++k) at[r][k] = bf16_to_float(tile.at[r][k]);
    }
  }
  void take(const CodeTile& tile) {
    for (int r = 0; r < kTileHeight; ++r) {
      for (int k = 0; k < kTileWidth; ++k) {
        at[r][k] = static_cast<float>(tile.at[r][k]) * f16_to_float(tile.scales[r][k / kGroup]);
      }
    }
  }
};

bool decode(const TiledWeights& weights, int64_t index, Weights& out) {
  const TileRange range = tile_range(weights, index);
  const uint8_t* data = weights.tiles.data() + range.begin;
  bool good = true;
  if (holds_codes(weights.layout)) {
    CodeTile tile;
    if (weights.layout == TileLayout::kDenseInt8) {
      decode_dense_codes(data, tile);
    } else {
      good = decode_two_four_codes(data, tile);
    }
    if (good) out.take(tile);
    return good;
  }
  Tile tile;
  switch (weights.layout) {
    case TileLayout::kTwoFour: good = decode_two_four(data, tile); break;
    case TileLayout::kBalanced: good = decode_balanced(data, weights.n, tile); break;
    case TileLayout::kBitmap: good = decode_bitmap(data, range.bytes, tile); break;
    default: decode_dense(data, tile);
  }
  if (good) out.take(tile);
  return good;
}

// Lays out the tiles of a bitmap.
Status plan_bitmap(ThreadPool& pool, std::span<const MatrixSource> matrices, TiledWeights& weights) {
  const auto tiles = static_cast<size_t>(weights.tile_count());
  std::vector<uint16_t> bytes(tiles);
  each_tile(pool, matrices, weights, [&](int64_t index, const Tile& tile) {
    bytes[static_cast<size_t>(index)] = static_cast<uint16_t>(bitmap_bytes(tile));
  });
  weights.most_tile_bytes = *std::max_element(bytes.begin(), bytes.end());
  weights.starts.resize(tiles + 1);
  int64_t at = 0;
  for (size_t i = 0; i < tiles; ++i) {
    weights.starts[i] = static_cast<uint32_t>(at / kStartUnit);
    at += bytes[i];
  }
  if (at / kStartUnit > UINT32_MAX)
    return Status(Code::kUsage, "the matrices take more than 64 GiB; pack fewer at once");
  weights.starts[tiles] = static_cast<uint32_t>(at / kStartUnit);
  return Status::ok();
}

Status check_sources(TileLayout layout, std::span<const MatrixSource> matrices, int n) {
  ESPALIER_TRY(check_shapes(matrices));
  if (holds_codes(layout)) return Status(Code::kUsage, layout_name(layout, n) + " is made of codes; use tile_codes");
  if (layout == TileLayout::kBalanced && (n < 1 || n > 32)) {
    return Status(Code::kUsage, "n of n:32 is " + std::to_string(n) + "; give 1 to 32");
  }
  return Status::ok();
}

}  // namespace

std::string layout_name(TileLayout layout, int n) {
  switch (layout) {
    case TileLayout::kDense: return "dense";
    case TileLayout::kTwoFour: return "2:4";
    case TileLayout::kBalanced: return std::to_string(n) + ":32";
    case TileLayout::kBitmap: return "bitmap";
    case TileLayout::kDenseInt8: return "dense int8";
    case TileLayout::kTwoFourInt8: return "2:4 int8";
  }
  return "";
}

TileChoice choose_tiles(ThreadPool& pool, std::span<const MatrixSource> matrices) {
  TiledWeights shape;
  shape.count = static_cast<int64_t>(matrices.size());
  shape.rows = matrices.front().rows();
  shape.cols = matrices.front().cols();
  std::atomic<int64_t> stored{0};
  std::atomic<int> most_of_four{0};
  std::atomic<int> most_of_run{0};
  each_tile(pool, matrices, shape, [&](int64_t, const Tile& tile) {
    int of_tile = 0;
    for (const auto& row : tile.at) {
      for (int run = 0; run < kTileWidth; run += 32) {
        int of_run = 0;
        for (int four = run; four < run + 32; four += 4) {
          const int count = (row[four] != 0) + (row[four + 1] != 0) + (row[four + 2] != 0) + (row[four + 3] != 0);
          raise(most_of_four, count);
          of_run += count;
        }
        raise(most_of_run, of_run);
        of_tile += of_run;
      }
    }
    stored.fetch_add(of_tile, std::memory_order_relaxed);
  });
  if (most_of_four <= 2) return {TileLayout::kTwoFour, 0};
  const double of_tile = static_cast<double>(stored) / static_cast<double>(shape.tile_count());
  const double bitmap = kBitmapHead + 2.0 * of_tile + kTailBytes;
  const int balanced = balanced_bytes(most_of_run);
  if (balanced <= kBitmapTime * bitmap && balanced <= kBalancedGain * kDenseBytes) {
    return {TileLayout::kBalanced, most_of_run};
  }
  if (kBitmapTime * bitmap <= kDenseBytes) return {TileLayout::kBitmap, 0};
  return {};
}

Result<TiledWeights> tile_weights(ThreadPool& pool, TileLayout layout, std::span<const MatrixSource> matrices, int n) {
  ESPALIER_TRY(check_sources(layout, matrices, n));
  TiledWeights weights;
  weights.layout = layout;
  weights.count = static_cast<int64_t>(matrices.size());
  weights.rows = matrices.front().rows();
  weights.cols = matrices.front().cols();
  if (layout == TileLayout::kBalanced) weights.n = n;
  if (layout == TileLayout::kBitmap) ESPALIER_TRY(plan_bitmap(pool, matrices, weights));
  ESPALIER_TRY(allocate_tiles(weights));
  FirstWrong wrong;
  each_tile(pool, matrices, weights, [&](int64_t index, const Tile& tile) {
    uint8_t* out = weights.tiles.data() + tile_range(weights, index).begin;
    if (layout == TileLayout::kBitmap) {
      encode_bitmap(tile, out);
    } else if (!encode_fixed(weights, tile, out)) {
      wrong.report(index);
    }
  });
  if (!wrong.any()) return weights;
  return does_not_fit(weights, wrong.index(), n);
}

Status untile_weights(ThreadPool& pool, const TiledWeights& weights, int64_t index, float* out) {
  const int64_t first = index * weights.row_tiles() * weights.col_tiles();
  FirstWrong wrong;
  pool.parallel_for(weights.row_tiles(), 4, [&](int64_t begin, int64_t end) {
    Weights tile;
    for (int64_t i = begin * weights.col_tiles(); i < end * weights.col_tiles(); ++i) {
      if (!decode(weights, first + i, tile)) {
        wrong.report(first + i);
        continue;
      }
      const int64_t row = i / weights.col_tiles() * kTileHeight;
      const int64_t col = i % weights.col_tiles() * kTileWidth;
      for (int64_t r = 0; r < std::min<int64_t>(kTileHeight, weights.rows - row); ++r) {
        for (int64_t k = 0; k < std::min<int64_t>(kTileWidth, weights.cols - col); ++k) {
          out[(row + r) * weights.cols + col + k] = tile.at[r][k];
        }
      }
    }
  });
  if (!wrong.any()) return Status::ok();
  return Status(Code::kSparse, tile_place(weights, wrong.index()) + " contradicts itself");
}

Status validate_tiles(ThreadPool& pool, const TiledWeights& weights) {
  const auto held = static_cast<int64_t>(weights.tiles.size());
  if (weights.layout != TileLayout::kBitmap) {
    const int64_t wanted = weights.tile_count() * fixed_tile_bytes(weights.layout, weights.n);
    if (held != wanted) {
      return Status(Code::kSparse,
                    "the tiles hold " + std::to_string(held) + " bytes, they take " + std::to_string(wanted));
    }
  } else {
    const bool fits = static_cast<int64_t>(weights.starts.size()) == weights.tile_count() + 1 &&
                      weights.starts.front() == 0 && weights.starts.back() * kStartUnit == held;
    if (!fits) return Status(Code::kSparse, "the starts of the tiles do not fit their number or their bytes");
    if (!std::is_sorted(weights.starts.begin(), weights.starts.end())) {
      return Status(Code::kSparse, "the starts of the tiles do not ascend");
    }
  }
  FirstWrong wrong;
  pool.parallel_for(weights.tile_count(), 64, [&](int64_t begin, int64_t end) {
    Weights tile;
    for (int64_t i = begin; i < end; ++i) {
      const bool fits =
          weights.layout != TileLayout::kBitmap || tile_range(weights, i).bytes <= weights.most_tile_bytes;
      if (!fits || !decode(weights, i, tile)) wrong.report(i);
    }
  });
  if (!wrong.any()) return Status::ok();
  return Status(Code::kSparse, tile_place(weights, wrong.index()) + " contradicts itself");
}

}  // namespace espalier::cuda
