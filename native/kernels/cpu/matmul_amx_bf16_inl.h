// Products of many tokens with bf16 weights on the matrix unit. A tile of weights, 16 rows × 32 inputs, is 16
// consecutive vectors of a tile row; a tile of activations is 16 tokens × 32 inputs.
//
// Two tile rows (a panel) meet two tiles of tokens (a pair) at a time: four tiles are loaded for four products. L2
// gives half as many, so a run of a panel's inputs stays in L1 for all pairs of a chunk of tokens, while theirs come
// past L1 from L2, which holds a block of inputs of the chunk. A pair's sums are stored during the next pair's first
// step. Whatever else there is to do goes between the products, a little at each step: the panel before is written out,
// and the next one is fed from memory, sparse weights by expanding them, dense ones by prefetching them.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/aligned.h"
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/matmul_sparse_inl.h"

namespace espalier {
namespace {

// Pairs of tiles of tokens in a chunk.
inline constexpr int64_t kChunkPairs = TileLayout::kChunkTokens / (2 * kTileTokens);
// Steps of a run: 16 KB of a panel. It ends before the unit that stores tiles falls asleep, which it does after a
// microsecond of rest; to wake it takes a quarter of one.
inline constexpr int64_t kRunSteps = 8;
// Tile rows whose sums are kept from block to block: 512 KB. The longer a block stays, the less often it is fetched.
inline constexpr int64_t kGroupTileRows = 32;
inline constexpr int64_t kBlockSteps = TileLayout::kTileSteps;
inline constexpr int kStepVectors = kTileBytes / 64;
// Sums of a panel and a pair.
inline constexpr int64_t kSumsBytes = 4 * kTileBytes;

// One or two tile rows of the weights and some of their inputs: what a round of products reads.
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

  void set_buffer(uint8_t*) {}
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
  // The started panel's tiles, tile row by tile row; of an only one, twice.
  void finish(const uint8_t* tiles[2]) {
    for (int64_t r = 0; r < 2; ++r) tiles[r] = at(next_, std::min(r, next_.count - 1));
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

// Weights that a source gives vector by vector; expanded into two buffers in turn. A tile row's blocks of inputs must
// be started in order, and no more than kGroupTileRows neighbours at once.
template <class Source>
class ExpandingFeed {
 public:
  explicit ExpandingFeed(const PackedMatrix& weights) : weights_(weights) {}
  static int64_t buffer_bytes() { return 2 * 2 * kBlockSteps * kTileBytes; }

  void set_buffer(uint8_t* buffer) { buffer_ = buffer; }
  void start(const Panel& panel) {
    next_ = panel;
    row_ = 0;
    done_ = 0;
    odd_ = !odd_;
    for (int64_t r = 0; panel.step == 0 && r < panel.count; ++r) source(r) = Source::of(weights_, panel.first + r);
  }
  ESPALIER_INLINE void feed(int64_t vectors) {
    const int64_t row_vectors = next_.steps * kStepVectors;
    const int64_t stored = std::min(row_vectors, weights_.vectors() - next_.step * kStepVectors);
    while (vectors > 0 && row_ < next_.count) {
      Source from = source(row_);
      uint8_t* out = row_buffer(row_);
      const int64_t end = std::min(stored, done_ + vectors);
      vectors -= end - done_;
      for (int64_t v = done_; v < end; ++v)
        store_to(out + v * 64, from.template next<1>(static_cast<int>(v % kBlockVectors)));
      source(row_) = from;
      done_ = end;
      if (done_ < stored) return;
      std::memset(out + stored * 64, 0, static_cast<size_t>(row_vectors - stored) * 64);
      done_ = 0;
      ++row_;
    }
  }
  void finish(const uint8_t* tiles[2]) {
    feed(next_.vectors());
    for (int64_t r = 0; r < 2; ++r) tiles[r] = row_buffer(std::min(r, next_.count - 1));
  }

 private:
  Source& source(int64_t row) { return sources_[(next_.first + row) % kGroupTileRows]; }
  uint8_t* row_buffer(int64_t row) const { return buffer_ + (odd_ ? 2 + row : row) * kBlockSteps * kTileBytes; }

  const PackedMatrix& weights_;
  Source sources_[kGroupTileRows];
  uint8_t* buffer_ = nullptr;
  Panel next_{};
  int64_t row_ = 0;   // being expanded
  int64_t done_ = 0;  // its vectors so far
  bool odd_ = false;
};

// A panel's sums on their way to y, a vector of a token at a time.
class PanelWriter {
 public:
  void start(const uint8_t* sums, float* y, int64_t y_stride, int64_t rows, int64_t tokens) {
    sums_ = sums;
    y_ = y;
    y_stride_ = y_stride;
    rows_ = rows;
    tokens_ = tokens;
    token_ = 0;
  }
  bool done() const { return token_ == tokens_; }
  ESPALIER_INLINE void write(int64_t tokens) {
    for (const int64_t end = std::min(tokens_, token_ + tokens); token_ < end; ++token_) {
      const uint8_t* from = sums_ + token_ / (2 * kTileTokens) * kSumsBytes + token_ % (2 * kTileTokens) * 64;
      float* y = y_ + token_ * y_stride_;
      store_rows(y, rows_, load_from<Vf>(from));
      if (rows_ > kTileRows) store_rows(y + kTileRows, rows_ - kTileRows, load_from<Vf>(from + 2 * kTileBytes));
    }
  }

 private:
  const uint8_t* sums_ = nullptr;
  float* y_ = nullptr;
  int64_t y_stride_ = 0;
  int64_t rows_ = 0;  // may be more than the panel has
  int64_t tokens_ = 0;
  int64_t token_ = 0;
};

// One task's loops.
template <class Feed>
class TiledProduct {
 public:
  explicit TiledProduct(const MatmulTask& task)
      : task_(task),
        feed_(task.weights),
        layout_(TileLayout::of(task.tokens, task.weights.cols())),
        blocks_((layout_.steps + kBlockSteps - 1) / kBlockSteps) {}

  void run() {
    const TileUnit unit;
    // Kept from call to call: fresh pages would cost as much as the products.
    thread_local AlignedBuffer<uint8_t> memory;
    memory.ensure(static_cast<size_t>((1 + kGroupTileRows / 2 * kChunkPairs) * kSumsBytes + Feed::buffer_bytes()));
    nowhere_ = pending_ = memory.data();
    sums_ = nowhere_ + kSumsBytes;
    feed_.set_buffer(sums_ + kGroupTileRows / 2 * kChunkPairs * kSumsBytes);
    for (int64_t first = 0; first < layout_.pairs; first += kChunkPairs) {
      first_pair_ = first;
      pairs_ = std::min(kChunkPairs, layout_.pairs - first);
      run_chunk();
    }
  }

 private:
  // A panel, and where its sums and results go.
  struct Round {
    Panel panel;
    uint8_t* sums;  // [pair][tile row of the panel][token tile of the pair]
    float* y;       // of the chunk's first token
    bool last;      // block of inputs
  };

  // Groups of tile rows, in each the blocks of inputs, in each the panels.
  Round round_at(int64_t i) const {
    const int64_t group = i / (kGroupTileRows / 2 * blocks_);
    const int64_t first = task_.tile_begin + group * kGroupTileRows;
    const int64_t count = std::min(kGroupTileRows, task_.tile_end - first);
    const int64_t panels = (count + 1) / 2;
    const int64_t of_group = i - group * kGroupTileRows / 2 * blocks_;
    const int64_t row = of_group % panels * 2;
    const int64_t block = of_group / panels;
    const int64_t place = blocks_ == 1 ? i % 2 : row / 2;
    return {{first + row, std::min<int64_t>(2, count - row), block * kBlockSteps, layout_.block_steps(block)},
            sums_ + place * kChunkPairs * kSumsBytes,
            task_.y + first_token() * task_.y_stride + (first + row - task_.tile_begin) * kTileRows,
            block + 1 == blocks_};
  }

  void run_chunk() {
    const int64_t rounds = (task_.tile_end - task_.tile_begin + 1) / 2 * blocks_;
    const int64_t tokens = std::min(task_.tokens - first_token(), pairs_ * 2 * kTileTokens);
    Round round = round_at(0);
    feed_.start(round.panel);
    for (int64_t i = 0; i < rounds; ++i) {
      const uint8_t* weights[2];
      feed_.finish(weights);
      const int64_t steps = pairs_ * round.panel.steps;
      Round next{};
      feed_rate_ = 0;
      if (i + 1 < rounds) {
        next = round_at(i + 1);
        feed_.start(next.panel);
        feed_rate_ = (next.panel.vectors() + steps - 1) / steps;
      }
      write_rate_ = (tokens + steps - 1) / steps;
      multiply_panel(round, weights);
      writer_.write(tokens);
      if (round.last) {
        const int64_t rows = std::min(task_.weights.rows(), task_.tile_end * kTileRows) - round.panel.first * kTileRows;
        writer_.start(round.sums, round.y, task_.y_stride, std::min<int64_t>(rows, 2 * kTileRows), tokens);
      }
      round = next;
    }
    writer_.write(tokens);
  }

  int64_t first_token() const { return first_pair_ * 2 * kTileTokens; }

  void multiply_panel(const Round& round, const uint8_t* const weights[2]) {
    const Panel& panel = round.panel;
    const auto* x =
        reinterpret_cast<const uint8_t*>(task_.tiles + layout_.offset(panel.step / kBlockSteps, first_pair_));
    const int64_t most = pairs_ == 1 ? panel.steps : kRunSteps;
    for (int64_t step = 0; step < panel.steps; step += most) {
      const int64_t steps = std::min(most, panel.steps - step);
      const uint8_t* const run[2] = {weights[0] + step * kTileBytes, weights[1] + step * kTileBytes};
      for (int64_t pair = 0; pair < pairs_; ++pair) {
        const uint8_t* of_pair = x + (pair * panel.steps + step) * 2 * kTileBytes;
        uint8_t* sums = round.sums + pair * kSumsBytes;
        const bool two = task_.tokens - first_token() - pair * 2 * kTileTokens > kTileTokens;
        if (panel.step + step > 0) {
          two ? multiply_run<2, false>(of_pair, run, steps, sums) : multiply_run<1, false>(of_pair, run, steps, sums);
        } else {
          two ? multiply_run<2, true>(of_pair, run, steps, sums) : multiply_run<1, true>(of_pair, run, steps, sums);
        }
      }
    }
    store_pending();
  }

  // Sums in registers 0 … 3: [token tile][tile row].
  template <int kTokenTiles, bool kFresh>
  ESPALIER_INLINE void multiply_run(const uint8_t* x, const uint8_t* const weights[2], int64_t steps, uint8_t* sums) {
    tile_stream<4>(x, 64);
    tile_load<6>(weights[0], 64);
    take_up<0, 0, kFresh>(sums);
    tile_dot_bf16<0, 4, 6>();
    tile_load<7>(weights[1], 64);
    take_up<1, 2, kFresh>(sums);
    tile_dot_bf16<1, 4, 7>();
    if constexpr (kTokenTiles == 2) {
      tile_stream<5>(x + kTileBytes, 64);
      take_up<2, 1, kFresh>(sums);
      tile_dot_bf16<2, 5, 6>();
      take_up<3, 3, kFresh>(sums);
      tile_dot_bf16<3, 5, 7>();
    } else {
      tile_store<2>(pending_ + kTileBytes, 64);
      tile_store<3>(pending_ + 3 * kTileBytes, 64);
    }
    between();
    for (int64_t s = 1; s < steps; ++s) {
      tile_stream<4>(x + 2 * s * kTileBytes, 64);
      tile_load<6>(weights[0] + s * kTileBytes, 64);
      tile_load<7>(weights[1] + s * kTileBytes, 64);
      if constexpr (kTokenTiles == 2) tile_stream<5>(x + (2 * s + 1) * kTileBytes, 64);
      tile_dot_bf16<0, 4, 6>();
      tile_dot_bf16<1, 4, 7>();
      if constexpr (kTokenTiles == 2) {
        tile_dot_bf16<2, 5, 6>();
        tile_dot_bf16<3, 5, 7>();
      }
      between();
    }
    pending_ = sums;
  }

  // Stores what a register sums for the pair before and goes on with the sum at `place`.
  template <int kRegister, int kPlace, bool kFresh>
  ESPALIER_INLINE void take_up(const uint8_t* sums) {
    tile_store<kRegister>(pending_ + kPlace * kTileBytes, 64);
    if constexpr (kFresh) {
      tile_zero<kRegister>();
    } else {
      tile_load<kRegister>(sums + kPlace * kTileBytes, 64);
    }
  }

  void store_pending() {
    tile_store<0>(pending_, 64);
    tile_store<1>(pending_ + 2 * kTileBytes, 64);
    tile_store<2>(pending_ + kTileBytes, 64);
    tile_store<3>(pending_ + 3 * kTileBytes, 64);
    pending_ = nowhere_;
  }

  ESPALIER_INLINE void between() {
    feed_.feed(feed_rate_);
    if (!writer_.done()) writer_.write(write_rate_);
  }

  const MatmulTask& task_;
  Feed feed_;
  PanelWriter writer_;
  TileLayout layout_;
  int64_t blocks_;
  int64_t first_pair_ = 0;
  int64_t pairs_ = 0;
  int64_t feed_rate_ = 0;   // vectors a step
  int64_t write_rate_ = 0;  // tokens a step
  uint8_t* sums_ = nullptr;
  uint8_t* nowhere_ = nullptr;  // takes the place of sums that nobody waits for
  uint8_t* pending_ = nullptr;  // sums of which the registers have the newest
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
