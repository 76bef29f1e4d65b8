// A weight matrix packed for execution.
//
// Layout, shared by all patterns: the matrix [rows, cols] is cut into tile rows of 16 rows (the last one padded with
// zero rows); within a tile row, one 64-byte *vector* holds 16 rows × `step` consecutive inputs, row-major in the
// vector: step = 2 for bf16 (element r·2 + k), step = 1 for f32 (element r). cols is padded with zeros to a multiple of
// `step`.
//   dense   all vectors, one after the other
//   bitmap  a mask bit for each element of a vector (32 bits for bf16), and the kept values packed in vector order;
//   tile
//           row t starts at value offsets[t]
//   n:m     as bitmap, with exactly n kept of each m consecutive inputs (a kept zero is stored where there are fewer),
//   so
//           that tile rows have a fixed stride and need no offsets; m is even
// The sparse patterns exist for bf16 values; f32 is dense only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/aligned.h"
#include "core/dtype.h"
#include "core/status.h"
#include "core/thread_pool.h"

namespace espalier {

inline constexpr int kTileRows = 16;

enum class Storage : uint8_t { kDense, kBitmap, kNm };

const char* storage_name(Storage storage);

struct Format {
  Storage storage = Storage::kDense;
  DType values = DType::kBF16;  // kBF16 or kF32
  int n = 0;                    // n:m only
  int m = 0;

  bool operator==(const Format&) const = default;
  // "dense bf16", "bitmap bf16", "2:4 bf16", …
  std::string name() const;
};

// Inputs that one 64-byte vector spans.
inline int vector_step(DType values) { return values == DType::kBF16 ? 2 : 1; }

class PackedMatrix {
 public:
  // Copies row `row` (cols values) to `out`. Called from several threads.
  using RowReader = std::function<void(int64_t row, float* out)>;

  // Packs a matrix. kUsage if the format does not exist or the matrix does not satisfy its n:m pattern; bf16 values are
  // rounded to nearest even.
  static Result<PackedMatrix> pack(ThreadPool& pool, Format format, int64_t rows, int64_t cols, const RowReader& read);

  // Writes row-major [rows, cols] floats; exact for what pack stored.
  void unpack(ThreadPool& pool, float* out) const;

  // Checks masks, offsets and lengths against each other; kSparse says what is wrong.
  Status validate() const;

  const Format& format() const { return format_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t tile_rows() const { return (rows_ + kTileRows - 1) / kTileRows; }
  // Vectors in a tile row.
  int64_t vectors() const { return (cols_ + vector_step(format_.values) - 1) / vector_step(format_.values); }
  // What a product reads: values, masks and offsets.
  int64_t bytes() const;

  // Raw parts, for kernels.
  const uint16_t* bf16_values() const { return bf16_.data(); }
  const float* f32_values() const { return f32_.data(); }
  const uint32_t* masks() const { return masks_.data(); }
  // First value of a tile row, in elements.
  int64_t value_offset(int64_t tile_row) const;

 private:
  Format format_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  AlignedBuffer<uint16_t> bf16_;
  AlignedBuffer<float> f32_;
  AlignedBuffer<uint32_t> masks_;
  AlignedBuffer<int64_t> offsets_;
};

// The format that runs a matrix of these values fastest: n:m where every group of m inputs holds at most n non-zeros
// (2:4, then 4:8, 8:16, 16:32), bitmap where at least `kBitmapSparsity` of the elements are zero, else dense. f32 stays
// dense.
inline constexpr double kBitmapSparsity = 0.4;
Format choose_format(ThreadPool& pool, DType values, int64_t rows, int64_t cols, const PackedMatrix::RowReader& read);

}  // namespace espalier
