// A weight matrix packed for execution.
//
// The matrix [rows, cols] is cut into tile rows of 16 rows (the last one padded with zero rows). Within a tile row, one
// 64-byte vector holds 16 rows × `step` consecutive inputs, row by row: element r · step + k.
//
//   values  step  stored as
//   f32      1    float
//   bf16     2    bf16, rounded to nearest even
//   int8     4    a byte q + 128, −127 ≤ q ≤ 127
//   int4     4    vectors 2i and 2i + 1 share bytes: q + 8 of the former in the high nibble, of the latter in the low
//   one
//
// int8 and int4 have one f16 scale for each row and 64 consecutive inputs (weight = q · scale), and cols padded to 64;
// bf16 pads to 2. Padding is zeros.
//
//   dense    all vectors, one after the other
//   bitmap   a bit for each element of a vector (set: stored), and the stored elements packed in vector order; two int4
//            vectors that share bytes take as many as the fuller one needs; tile row t starts at offsets[t]
//   n:m      as bitmap with exactly n stored of each m consecutive inputs (zeros, where there are fewer others), so
//   that
//            tile rows have a fixed stride and need no offsets
#pragma once

#include <cstdint>
#include <functional>

#include "core/aligned.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "sparse/format.h"

namespace espalier {

class PackedMatrix {
 public:
  // Copies row `row` (cols values) to `out`. Called from several threads.
  using RowReader = std::function<void(int64_t row, float* out)>;

  // kUsage if the format does not exist for this matrix or the matrix does not satisfy its n:m; kOutOfMemory.
  static Result<PackedMatrix> pack(ThreadPool& pool, Format format, int64_t rows, int64_t cols, const RowReader& read);

  // Writes row-major [rows, cols] floats: exactly what is stored.
  void unpack(ThreadPool& pool, float* out) const;

  // Checks masks, offsets and lengths against each other; kSparse says what is wrong.
  Status validate() const;

  const Format& format() const { return format_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t tile_rows() const { return (rows_ + kTileRows - 1) / kTileRows; }
  // Inputs with padding.
  int64_t padded_cols() const;
  // Vectors in a tile row.
  int64_t vectors() const { return padded_cols() / vector_step(format_.values); }
  // Scale groups in a tile row; int8 and int4 only.
  int64_t groups() const { return padded_cols() / kGroup; }
  // What a product reads: elements, masks, scales and offsets.
  int64_t bytes() const;

  // The parts of a tile row, for kernels. Vector loads may run up to 64 bytes past the end of any part.
  const uint8_t* elements(int64_t tile_row) const { return elements_.data() + element_offset(tile_row); }
  // bf16: 32 bits a vector; int8, int4: 64.
  const uint32_t* masks(int64_t tile_row) const { return masks_.data() + tile_row * vectors() * mask_words(); }
  const uint16_t* scales(int64_t tile_row) const { return scales_.data() + tile_row * groups() * kTileRows; }

 private:
  friend class Packer;
  int64_t mask_words() const { return is_quantised(format_.values) ? 2 : 1; }
  // Bytes before a tile row's elements.
  int64_t element_offset(int64_t tile_row) const;

  Format format_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  AlignedBuffer<uint8_t> elements_;
  AlignedBuffer<uint32_t> masks_;
  AlignedBuffer<uint16_t> scales_;  // f16
  AlignedBuffer<int64_t> offsets_;  // bitmap only
};

// The format that runs a matrix of these values fastest: n:m where every group of m inputs holds at most m / 2
// non-zeros (2:4 before 4:8, 8:16 and 16:32), bitmap where at least `kBitmapSparsity` of the elements are zero, else
// dense.
inline constexpr double kBitmapSparsity = 0.4;
Format choose_format(ThreadPool& pool, Values values, int64_t rows, int64_t cols, const PackedMatrix::RowReader& read);

}  // namespace espalier
