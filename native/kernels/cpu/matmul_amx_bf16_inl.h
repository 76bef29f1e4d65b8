// Products of many tokens with bf16 weights on the matrix unit. A tile of weights, 16 rows × 32 inputs, is 16
// consecutive vectors of a tile row; a tile of activations is 16 tokens × 32 inputs.
//
// Two tile rows (a panel) meet two tiles of tokens at a time: four tiles are loaded for four products, more than L2
// gives. So a run of a few inputs of the panel stays in L1 for a few pairs of tokens, with their sums; a block of
// inputs of a chunk of tokens and the sums of a group of tile rows stay in L2. While a panel is multiplied, the next
// one is fed from memory: sparse weights are expanded, dense ones prefetched, a few vectors between the products.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/aligned.h"
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/matmul_inl.h"

namespace espalier {
namespace {

// Pairs of tiles of tokens in a chunk: 512 tokens, 1 MB a block, 512 KB of sums.
inline constexpr int64_t kChunkPairs = 16;
// Pairs and steps that stay in L1.
inline constexpr int64_t kRunPairs = 2;
inline constexpr int64_t kRunSteps = 8;
inline constexpr int64_t kGroupTileRows = 16;
inline constexpr int64_t kBlockSteps = TileLayout::kTileSteps;
inline constexpr int kStepVectors = kTileBytes / 64;
// Sums of a panel and a pair.
inline constexpr int64_t kSumsBytes = 4 * kTileBytes;

// Tile rows [first, first + count) of the weights and some of their inputs: what a panel's products read.
struct Panel {
  int64_t first;
  int64_t count;  // 1 or 2
  int64_t step;
  int64_t steps;

  int64_t vectors() const { return count * steps * kStepVectors; }
};

// Weights that lie in memory as tiles.
class DenseFeed {
 public:
  explicit DenseFeed(const PackedMatrix& weights) : weights_(weights) {}
  static int64_t buffer_bytes() { return 0; }

  void start_group(int64_t, int64_t, uint8_t*) {}
  void start(const Panel& panel) {
    next_ = panel;
    start_row(0);
  }
  // Brings the next `vectors` of the started panel nearer.
  ESPALIER_INLINE void feed(int64_t vectors) {
    const uint8_t* line = line_;
    const uint8_t* end = std::min(line + vectors * 64, end_);
    for (; line < end; line += 64) __builtin_prefetch(line, 0, 2);
    line_ = line;
    if (line == end_ && row_ + 1 < next_.count) start_row(row_ + 1);
  }
  // The started panel's tiles, tile row by tile row.
  void finish(const uint8_t* tiles[2]) {
    for (int64_t r = 0; r < next_.count; ++r) tiles[r] = at(next_, r);
  }

 private:
  const uint8_t* at(const Panel& panel, int64_t row) const {
    return weights_.elements(panel.first + row) + panel.step * kTileBytes;
  }

  void start_row(int64_t row) {
    row_ = row;
    line_ = at(next_, row);
    end_ = line_ + next_.steps * kTileBytes;
  }

  const PackedMatrix& weights_;
  Panel next_{};
  int64_t row_ = 0;
  const uint8_t* line_ = nullptr;  // next of the row
  const uint8_t* end_ = nullptr;
};

// Weights that a source gives vector by vector; expanded into two buffers in turn. Blocks of inputs must be started in
// order.
template <class Source>
class ExpandingFeed {
 public:
  explicit ExpandingFeed(const PackedMatrix& weights) : weights_(weights) {}
  static int64_t buffer_bytes() { return 2 * 2 * kBlockSteps * kTileBytes; }

  void start_group(int64_t first, int64_t count, uint8_t* buffers) {
    group_ = first;
    buffer_ = buffers;
    for (int64_t r = 0; r < count; ++r) sources_[r] = Source::of(weights_, first + r);
  }
  void start(const Panel& panel) {
    next_ = panel;
    row_ = 0;
    done_ = 0;
    odd_ = !odd_;
  }
  ESPALIER_INLINE void feed(int64_t vectors) {
    const int64_t row_vectors = next_.steps * kStepVectors;
    const int64_t stored = std::min(row_vectors, weights_.vectors() - next_.step * kStepVectors);
    while (vectors > 0 && row_ < next_.count) {
      Source& kept = sources_[next_.first - group_ + row_];
      Source source = kept;
      uint8_t* out = row_buffer(row_);
      const int64_t end = std::min(stored, done_ + vectors);
      vectors -= end - done_;
      for (int64_t v = done_; v < end; ++v) store_to(out + v * 64, source.next(static_cast<int>(v % kBlockVectors)));
      kept = source;
      done_ = end;
      if (done_ < stored) return;
      std::memset(out + stored * 64, 0, static_cast<size_t>(row_vectors - stored) * 64);
      done_ = 0;
      ++row_;
    }
  }
  void finish(const uint8_t* tiles[2]) {
    feed(next_.vectors());
    for (int64_t r = 0; r < next_.count; ++r) tiles[r] = row_buffer(r);
  }

 private:
  uint8_t* row_buffer(int64_t row) const { return buffer_ + (odd_ ? 2 + row : row) * kBlockSteps * kTileBytes; }

  const PackedMatrix& weights_;
  Source sources_[kGroupTileRows];
  uint8_t* buffer_ = nullptr;
  int64_t group_ = 0;
  Panel next_{};
  int64_t row_ = 0;   // being expanded
  int64_t done_ = 0;  // its vectors so far
  bool odd_ = false;
};

// Sums in registers 0 … 3: [token tile][tile row].
template <int kTokenTiles, int kRows, class Use>
ESPALIER_INLINE void for_sums(Use&& use) {
  use.template operator()<0>(0, 0);
  if constexpr (kRows == 2) use.template operator()<1>(0, 1);
  if constexpr (kTokenTiles == 2) use.template operator()<2>(1, 0);
  if constexpr (kTokenTiles == 2 && kRows == 2) use.template operator()<3>(1, 1);
}

template <int kTokenTiles, int kRows, class Feed>
ESPALIER_INLINE void multiply_steps(const uint8_t* x, const uint8_t* const weights[2], int64_t steps, Feed& feed,
                                    int64_t rate) {
  for (int64_t s = 0; s < steps; ++s) {
    tile_load<4>(x + 2 * s * kTileBytes, 64);
    if constexpr (kTokenTiles == 2) tile_load<5>(x + (2 * s + 1) * kTileBytes, 64);
    tile_load<6>(weights[0] + s * kTileBytes, 64);
    if constexpr (kRows == 2) tile_load<7>(weights[1] + s * kTileBytes, 64);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (kRows == 2) tile_dot_bf16<1, 4, 7>();
    if constexpr (kTokenTiles == 2) tile_dot_bf16<2, 5, 6>();
    if constexpr (kTokenTiles == 2 && kRows == 2) tile_dot_bf16<3, 5, 7>();
    feed.feed(rate);
  }
}

// One task's loops.
template <class Feed>
class TiledProduct {
 public:
  explicit TiledProduct(const MatmulTask& task)
      : task_(task), feed_(task.weights), layout_(TileLayout::of(task.tokens, task.weights.cols())) {}

  void run() {
    const TileUnit unit;
    for (int64_t first = 0; first < layout_.pairs; first += kChunkPairs) {
      first_pair_ = first;
      pairs_ = std::min(kChunkPairs, layout_.pairs - first);
      // Kept from call to call: fresh pages would cost as much as the products.
      thread_local AlignedBuffer<uint8_t> memory;
      memory.ensure(static_cast<size_t>(Feed::buffer_bytes() + kGroupTileRows / 2 * pairs_ * kSumsBytes));
      sums_ = memory.data() + Feed::buffer_bytes();
      for (int64_t tile = task_.tile_begin; tile < task_.tile_end; tile += kGroupTileRows) {
        group_ = tile;
        const int64_t count = std::min(kGroupTileRows, task_.tile_end - tile);
        feed_.start_group(tile, count, memory.data());
        run_group(count);
        write_group(count);
      }
    }
  }

 private:
  Panel panel_at(int64_t i, int64_t count) const {
    const int64_t panels = (count + 1) / 2;
    const int64_t row = i % panels * 2;
    const int64_t block = i / panels;
    return {group_ + row, std::min<int64_t>(2, count - row), block * kBlockSteps, layout_.block_steps(block)};
  }

  void run_group(int64_t count) {
    const int64_t panels = (count + 1) / 2 * ((layout_.steps + kBlockSteps - 1) / kBlockSteps);
    feed_.start(panel_at(0, count));
    for (int64_t i = 0; i < panels; ++i) {
      const Panel panel = panel_at(i, count);
      const uint8_t* weights[2];
      feed_.finish(weights);
      int64_t rate = 0;
      if (i + 1 < panels) {
        const Panel next = panel_at(i + 1, count);
        feed_.start(next);
        rate = (next.vectors() + pairs_ * panel.steps - 1) / (pairs_ * panel.steps);
      }
      for (int64_t first = 0; first < pairs_; first += kRunPairs) {
        const int64_t end = std::min(pairs_, first + kRunPairs);
        for (int64_t step = 0; step < panel.steps; step += kRunSteps) {
          for (int64_t pair = first; pair < end; ++pair) multiply_run(panel, weights, step, pair, rate);
        }
      }
    }
  }

  // Of a pair of this chunk: the first token, and how many are left from it on.
  int64_t token_of(int64_t pair) const { return (first_pair_ + pair) * 2 * kTileTokens; }
  int64_t tokens_of(int64_t pair) const { return task_.tokens - token_of(pair); }

  // [panel][pair][tile row of the panel][token tile of the pair]
  uint8_t* sums(const Panel& panel, int64_t pair) const {
    return sums_ + ((panel.first - group_) / 2 * pairs_ + pair) * kSumsBytes;
  }

  void multiply_run(const Panel& panel, const uint8_t* const weights[2], int64_t step, int64_t pair, int64_t rate) {
    const bool two = tokens_of(pair) > kTileTokens;
    if (two && panel.count == 2) {
      multiply_run<2, 2>(panel, weights, step, pair, rate);
    } else if (two) {
      multiply_run<2, 1>(panel, weights, step, pair, rate);
    } else if (panel.count == 2) {
      multiply_run<1, 2>(panel, weights, step, pair, rate);
    } else {
      multiply_run<1, 1>(panel, weights, step, pair, rate);
    }
  }

  template <int kTokenTiles, int kRows>
  void multiply_run(const Panel& panel, const uint8_t* const weights[2], int64_t step, int64_t pair, int64_t rate) {
    const uint16_t* x = task_.tiles + layout_.offset(panel.step / kBlockSteps, first_pair_ + pair);
    const int64_t steps = std::min(kRunSteps, panel.steps - step);
    uint8_t* kept = sums(panel, pair);
    for_sums<kTokenTiles, kRows>([&]<int kSum>(int64_t t, int64_t r) __attribute__((always_inline)) {
      if (panel.step + step == 0) {
        tile_zero<kSum>();
      } else {
        tile_load<kSum>(kept + (2 * r + t) * kTileBytes, 64);
      }
    });
    const uint8_t* const run[2] = {weights[0] + step * kTileBytes,
                                   kRows == 2 ? weights[1] + step * kTileBytes : nullptr};
    multiply_steps<kTokenTiles, kRows>(reinterpret_cast<const uint8_t*>(x) + 2 * step * kTileBytes, run, steps, feed_,
                                       rate);
    for_sums<kTokenTiles, kRows>([&]<int kSum>(int64_t t, int64_t r) __attribute__((always_inline)) {
      tile_store<kSum>(kept + (2 * r + t) * kTileBytes, 64);
    });
  }

  // A group's sums, token by token, so that what lies together is written together.
  void write_group(int64_t count) const {
    const int64_t tokens = std::min(tokens_of(0), pairs_ * 2 * kTileTokens);
    const int64_t rows = task_.weights.rows() - group_ * kTileRows;
    for (int64_t t = 0; t < tokens; ++t) {
      const uint8_t* from = sums_ + t / (2 * kTileTokens) * kSumsBytes + t % (2 * kTileTokens) * 64;
      float* y = task_.y + (token_of(0) + t) * task_.y_stride + (group_ - task_.tile_begin) * kTileRows;
      for (int64_t r = 0; r < count; ++r) {
        store_rows(y + r * kTileRows, rows - r * kTileRows,
                   load_from<Vf>(from + r / 2 * pairs_ * kSumsBytes + r % 2 * 2 * kTileBytes));
      }
    }
  }

  const MatmulTask& task_;
  Feed feed_;
  TileLayout layout_;
  int64_t first_pair_ = 0;
  int64_t pairs_ = 0;
  int64_t group_ = 0;
  uint8_t* sums_ = nullptr;
};

void tiled_dense_bf16(const MatmulTask& task) {
  if (task.tiles == nullptr) return multiply_by_vectors(task);
  if (task.weights.vectors() % kStepVectors == 0) return TiledProduct<DenseFeed>(task).run();
  TiledProduct<ExpandingFeed<DenseSource>>(task).run();
}

void tiled_sparse_bf16(const MatmulTask& task) {
  if (task.tiles == nullptr) return multiply_by_vectors(task);
  TiledProduct<ExpandingFeed<SparseSource>>(task).run();
}

}  // namespace
}  // namespace espalier
