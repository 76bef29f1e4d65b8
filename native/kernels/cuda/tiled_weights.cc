#include "kernels/cuda/tiled_weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {
namespace {

constexpr int64_t kStartUnit = 16;
// Share of a bitmap's values that padding may add, for words in fixed places that no scan has to find.
constexpr double kPadding = 0.01;
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

int64_t fixed_tile_bytes(const TiledWeights& weights) {
  switch (weights.layout) {
    case TileLayout::kDense: return kDenseBytes;
    case TileLayout::kTwoFour: return kTwoFourBytes;
    default: return balanced_bytes(weights.slots);
  }
}

// False if the tile does not fit a layout of fixed size.
bool encode_fixed(const TiledWeights& weights, const Tile& tile, uint8_t* out) {
  switch (weights.layout) {
    case TileLayout::kDense: encode_dense(tile, out); return true;
    case TileLayout::kTwoFour: return encode_two_four(tile, out);
    default: return encode_balanced(tile, weights.slots, out);
  }
}

// Keeps the smallest index for which something was wrong.
class FirstWrong {
 public:
  void report(int64_t index) {
    int64_t first = first_.load(std::memory_order_relaxed);
    while (index < first && !first_.compare_exchange_weak(first, index)) {
    }
  }
  bool any() const { return first_ != INT64_MAX; }
  int64_t index() const { return first_; }

 private:
  std::atomic<int64_t> first_{INT64_MAX};
};

void raise(std::atomic<int>& most, int value) {
  int seen = most.load(std::memory_order_relaxed);
  while (value > seen && !most.compare_exchange_weak(seen, value)) {
  }
}

// Which matrix, and where in it.
std::string place(const TiledWeights& weights, int64_t tile) {
  const int64_t of_matrix = tile % (weights.row_tiles() * weights.col_tiles());
  return "matrix " + std::to_string(tile / (weights.row_tiles() * weights.col_tiles())) + " at row " +
         std::to_string(of_matrix / weights.col_tiles() * kTileHeight) + ", column " +
         std::to_string(of_matrix % weights.col_tiles() * kTileWidth);
}

// Where a tile of a validated or freshly made set lies.
struct Range {
  int64_t begin;
  int64_t bytes;
};
Range tile_range(const TiledWeights& weights, int64_t tile) {
  if (weights.layout != TileLayout::kBitmap) {
    return {tile * fixed_tile_bytes(weights), fixed_tile_bytes(weights)};
  }
  const int64_t begin = weights.starts[static_cast<size_t>(tile)];
  return {begin * kStartUnit, (weights.starts[static_cast<size_t>(tile) + 1] - begin) * kStartUnit};
}

bool decode(const TiledWeights& weights, int64_t index, Tile& tile) {
  const Range range = tile_range(weights, index);
  const uint8_t* data = weights.tiles.data() + range.begin;
  switch (weights.layout) {
    case TileLayout::kDense: decode_dense(data, tile); return true;
    case TileLayout::kTwoFour: return decode_two_four(data, tile);
    case TileLayout::kBalanced: return decode_balanced(data, weights.slots, tile);
    case TileLayout::kBitmap: return decode_bitmap(data, range.bytes, weights.slots, tile);
  }
  return false;
}

// Chooses `slots` of a bitmap and lays out its tiles.
Status plan_bitmap(ThreadPool& pool, std::span<const MatrixSource> matrices, TiledWeights& weights) {
  const auto tiles = static_cast<size_t>(weights.tile_count());
  std::vector<uint8_t> words(tiles * kLanes);
  each_tile(pool, matrices, weights, [&](int64_t index, const Tile& tile) {
    int counts[kLanes];
    bitmap_words(tile, counts);
    std::copy(counts, counts + kLanes, words.begin() + index * kLanes);
  });
  int64_t histogram[kMostSlots + 1] = {};
  for (const uint8_t count : words) ++histogram[count];
  int64_t total = 0;
  for (int i = 0; i <= kMostSlots; ++i) total += i * histogram[i];
  // Words of zeros that one more slot adds: one for each lane that has no more words than there are slots already.
  int64_t padding = 0;
  int64_t lanes = 0;
  for (int i = 0; i < kMostSlots; ++i) {
    lanes += histogram[i];
    padding += lanes;
    if (static_cast<double>(padding) > kPadding * static_cast<double>(total)) break;
    weights.slots = i + 1;
  }
  weights.most_slots = weights.slots;
  weights.starts.resize(tiles + 1);
  int64_t at = 0;
  for (size_t i = 0; i < tiles; ++i) {
    int counts[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      counts[lane] = words[i * kLanes + static_cast<size_t>(lane)];
      weights.most_slots = std::max(weights.most_slots, counts[lane]);
    }
    const int bytes = bitmap_bytes(counts, weights.slots);
    weights.most_tail = std::max(weights.most_tail, bytes - kMaskBytes - weights.slots * kSlotBytes);
    weights.starts[i] = static_cast<uint32_t>(at / kStartUnit);
    at += bytes;
  }
  if (at / kStartUnit > UINT32_MAX)
    return Status(Code::kUsage, "the matrices take more than 64 GiB; pack fewer at once");
  weights.starts[tiles] = static_cast<uint32_t>(at / kStartUnit);
  return Status::ok();
}

Status check_sources(TileLayout layout, std::span<const MatrixSource> matrices, int n) {
  if (matrices.empty()) return Status(Code::kUsage, "there is no matrix to pack");
  const MatrixSource& first = matrices.front();
  for (const MatrixSource& matrix : matrices) {
    if (matrix.rows() != first.rows() || matrix.cols() != first.cols()) {
      return Status(Code::kUsage, "the matrices differ in shape; pack those of one shape together");
    }
  }
  if (first.rows() < 1 || first.cols() < 1 || first.cols() % 32 != 0) {
    return Status(Code::kUsage, "the GPU's products need rows and a multiple of 32 columns, not " +
                                    std::to_string(first.rows()) + " × " + std::to_string(first.cols()));
  }
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
  const double bitmap =
      kMaskBytes + 2.0 * (1 + kPadding) * static_cast<double>(stored) / static_cast<double>(shape.tile_count());
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
  if (layout == TileLayout::kBalanced) weights.slots = n;
  if (layout == TileLayout::kBitmap) ESPALIER_TRY(plan_bitmap(pool, matrices, weights));
  const int64_t bytes = layout == TileLayout::kBitmap ? weights.starts.back() * kStartUnit
                                                      : weights.tile_count() * fixed_tile_bytes(weights);
  weights.tiles.reset_uninitialised(static_cast<size_t>(bytes));
  if (weights.tiles.data() == nullptr) return Status(Code::kOutOfMemory, "not enough memory to pack weights");
  FirstWrong wrong;
  each_tile(pool, matrices, weights, [&](int64_t index, const Tile& tile) {
    uint8_t* out = weights.tiles.data() + tile_range(weights, index).begin;
    if (layout == TileLayout::kBitmap) {
      encode_bitmap(tile, weights.slots, out);
    } else if (!encode_fixed(weights, tile, out)) {
      wrong.report(index);
    }
  });
  if (!wrong.any()) return weights;
  return Status(Code::kUsage,
                place(weights, wrong.index()) + " has more non-zeros than " + layout_name(layout, n) + " holds");
}

Status untile_weights(ThreadPool& pool, const TiledWeights& weights, int64_t index, float* out) {
  const int64_t first = index * weights.row_tiles() * weights.col_tiles();
  FirstWrong wrong;
  pool.parallel_for(weights.row_tiles(), 4, [&](int64_t begin, int64_t end) {
    Tile tile;
    for (int64_t i = begin * weights.col_tiles(); i < end * weights.col_tiles(); ++i) {
      if (!decode(weights, first + i, tile)) {
        wrong.report(first + i);
        continue;
      }
      const int64_t row = i / weights.col_tiles() * kTileHeight;
      const int64_t col = i % weights.col_tiles() * kTileWidth;
      for (int64_t r = 0; r < std::min<int64_t>(kTileHeight, weights.rows - row); ++r) {
        for (int64_t k = 0; k < std::min<int64_t>(kTileWidth, weights.cols - col); ++k) {
          out[(row + r) * weights.cols + col + k] = bf16_to_float(tile.at[r][k]);
        }
      }
    }
  });
  if (!wrong.any()) return Status::ok();
  return Status(Code::kSparse, place(weights, wrong.index()) + " contradicts itself");
}

Status validate_tiles(ThreadPool& pool, const TiledWeights& weights) {
  const auto held = static_cast<int64_t>(weights.tiles.size());
  if (weights.layout != TileLayout::kBitmap) {
    const int64_t wanted = weights.tile_count() * fixed_tile_bytes(weights);
    if (held != wanted) {
      return Status(Code::kSparse,
                    "the tiles hold " + std::to_string(held) + " bytes, they take " + std::to_string(wanted));
    }
  } else {
    const bool fits = weights.slots >= 0 && weights.slots <= weights.most_slots && weights.most_slots <= kMostSlots &&
                      static_cast<int64_t>(weights.starts.size()) == weights.tile_count() + 1 &&
                      weights.starts.front() == 0 && weights.starts.back() * kStartUnit == held;
    if (!fits) return Status(Code::kSparse, "the starts of the tiles do not fit their number or their bytes");
    if (!std::is_sorted(weights.starts.begin(), weights.starts.end())) {
      return Status(Code::kSparse, "the starts of the tiles do not ascend");
    }
  }
  FirstWrong wrong;
  pool.parallel_for(weights.tile_count(), 64, [&](int64_t begin, int64_t end) {
    Tile tile;
    for (int64_t i = begin; i < end; ++i) {
      bool good = decode(weights, i, tile);
      if (good && weights.layout == TileLayout::kBitmap) {
        const Range range = tile_range(weights, i);
        int words[kLanes];
        bitmap_words(weights.tiles.data() + range.begin, words);
        good = *std::max_element(words, words + kLanes) <= weights.most_slots &&
               range.bytes - kMaskBytes - weights.slots * kSlotBytes <= weights.most_tail;
      }
      if (!good) wrong.report(i);
    }
  });
  if (!wrong.any()) return Status::ok();
  return Status(Code::kSparse, place(weights, wrong.index()) + " contradicts itself");
}

}  // namespace espalier::cuda
