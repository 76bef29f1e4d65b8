// Weight matrices packed for the GPU's decode products: tiles as tile_codec.h has them, on the host. Plain C++, so that
// it is made and checked where there is no GPU.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/aligned.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "sparse/matrix_source.h"

namespace espalier {
class PackedMatrix;
}

namespace espalier::cuda {

// bf16 values as tile_codec.h has them, int8 ones as code_tiles.h.
enum class TileLayout : uint8_t { kDense, kTwoFour, kBalanced, kBitmap, kDenseInt8, kTwoFourInt8 };

inline bool holds_codes(TileLayout layout) {
  return layout == TileLayout::kDenseInt8 || layout == TileLayout::kTwoFourInt8;
}

// "dense", "2:4", "16:32" for n = 16, "bitmap", "dense int8", "2:4 int8".
std::string layout_name(TileLayout layout, int n);

// Matrices of the same shape, such as the experts of a layer, that one launch can multiply by. Tiles lie matrix by
// matrix, 16 rows after 16 rows, and within these by inputs; rows are padded to 16 and inputs to 128 with zeros.
struct TiledWeights {
  TileLayout layout = TileLayout::kTwoFour;
  int64_t count = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int n = 0;                // n:32 only
  int most_tile_bytes = 0;  // bitmap only: those of the largest tile
  AlignedBuffer<uint8_t> tiles;
  // Bitmap: where each tile begins and the last one ends, in units of 16 bytes.
  std::vector<uint32_t> starts;

  int64_t row_tiles() const { return (rows + 15) / 16; }
  int64_t col_tiles() const { return (cols + 127) / 128; }
  int64_t tile_count() const { return count * row_tiles() * col_tiles(); }
  // What one product by all of them reads of weights.
  int64_t bytes() const { return static_cast<int64_t>(tiles.size() + starts.size() * sizeof(uint32_t)); }
};

struct TileChoice {
  TileLayout layout = TileLayout::kDense;
  int n = 0;  // n:32 only
};

// The layout whose product by these matrices takes the least time, all of them being in the same one.
TileChoice choose_tiles(ThreadPool& pool, std::span<const MatrixSource> matrices);

// Rounds to bf16 and packs matrices of one shape; `n` is for n:32 only. kUsage if there is none, if the shapes differ,
// if cols is not a multiple of 32, if n is not 1 … 32, or if a matrix does not fit the layout; kOutOfMemory.
Result<TiledWeights> tile_weights(ThreadPool& pool, TileLayout layout, std::span<const MatrixSource> matrices,
                                  int n = 0);
// The same of one matrix packed for the CPU.
Result<TiledWeights> tile_weights(ThreadPool& pool, TileLayout layout, const PackedMatrix& matrix, int n = 0);

// A matrix of int8 codes on the host, which must outlive this: the weight in row r and column k is codes[r · cols + k],
// −127 … 127, times the f16 scales[r · ceil(cols / 64) + k / 64].
class CodeMatrix {
 public:
  CodeMatrix(int64_t rows, int64_t cols, const int8_t* codes, const uint16_t* scales)
      : rows_(rows), cols_(cols), codes_(codes), scales_(scales) {}

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t groups() const { return (cols_ + kGroup - 1) / kGroup; }
  const int8_t* row(int64_t r) const { return codes_ + r * cols_; }
  const uint16_t* scales(int64_t r) const { return scales_ + r * groups(); }

 private:
  int64_t rows_;
  int64_t cols_;
  const int8_t* codes_;
  const uint16_t* scales_;
};

// kTwoFourInt8 where all of the matrices fit it, else kDenseInt8.
TileLayout choose_code_tiles(ThreadPool& pool, std::span<const CodeMatrix> matrices);

// Packs codes as they are. kUsage if there is no matrix, if shapes differ, if cols is not a multiple of 32, if the
// layout is not one of int8, or if a matrix does not fit it; kOutOfMemory.
Result<TiledWeights> tile_codes(ThreadPool& pool, TileLayout layout, std::span<const CodeMatrix> matrices);
// The same of one matrix packed for the CPU as int8; kUsage for others.
Result<TiledWeights> tile_codes(ThreadPool& pool, TileLayout layout, const PackedMatrix& matrix);

// Writes row-major [rows, cols] floats of one of the matrices. kSparse if its tiles contradict themselves.
Status untile_weights(ThreadPool& pool, const TiledWeights& weights, int64_t index, float* out);

// Checks sizes, starts, masks and positions against each other, so that no product leaves the tiles; kSparse.
Status validate_tiles(ThreadPool& pool, const TiledWeights& weights);

}  // namespace espalier::cuda
