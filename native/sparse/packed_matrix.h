// A weight matrix packed for execution.
//
// The matrix [rows, cols] is cut into tile rows of 16 rows (the last one padded with zero rows). Within a tile row, one
// 64-byte vector holds 16 rows × `step` consecutive inputs, row by row: element r · step + k.
//
//   values  step  stored as
//   f32      1    float
//   bf16     2    bf16, rounded to nearest even
//   int8     4    a byte q + 128, −127 ≤ q ≤ 127
//   int4     4    q + 8 in half a byte, which a dense matrix and a sparse one share in different ways, see below
//
// int8 and int4 have one f16 scale for each row and 64 consecutive inputs (weight = q · scale), and cols padded to 64;
// bf16 pads to 2. Padding is zeros.
//
//   dense    all vectors, one after the other; int4 vector 2i has the high nibbles of 64 bytes, vector 2i + 1 the low
//            ones
//   bitmap   a bit for each element of a vector (set: stored), and the stored elements packed in vector order; tile row
//            t starts at offsets[t]. Of int4, groups 2j and 2j + 1 of 64 inputs share a run of bytes: the stored
//            elements of the former in its high nibbles, those of the latter in its low ones. It takes as many bytes as
//            the fuller group has elements; 8 fills the other's nibbles, and those beside a last group without partner
//   n:m      as bitmap with exactly n stored of each m consecutive inputs (zeros, where there are fewer others), so
//            that tile rows have a fixed stride and need no offsets
//
// Two neighbouring vectors of 64 elements differ more in what they store, compared with their size, than two groups of
// 1024: at half density, sharing bytes costs unstructured int4 1 % where vectors would cost 4 %, and n:m nothing
// whatever m is.
//
// All parts lie in one block of memory, see packed_block.h: a file of such blocks is used where it is mapped.
#pragma once

#include <cstdint>
#include <memory>

#include "core/status.h"
#include "core/thread_pool.h"
#include "sparse/matrix_source.h"
#include "sparse/packed_block.h"
#include "sparse/survey.h"

namespace espalier {

// Copies share the block, which nothing changes after packing.
class PackedMatrix {
 public:
  using RowReader = MatrixSource::RowReader;

  // Of no size, until one is assigned.
  PackedMatrix() = default;

  // kUsage if the format does not exist for this matrix or the matrix does not satisfy its n:m; kOutOfMemory. A survey
  // of the same source and values spares a bitmap one pass over it.
  static Result<PackedMatrix> pack(ThreadPool& pool, Format format, const MatrixSource& source,
                                   const ZeroSurvey* survey = nullptr);
  static Result<PackedMatrix> pack(ThreadPool& pool, Format format, int64_t rows, int64_t cols, const RowReader& read) {
    return pack(pool, format, MatrixSource(rows, cols, read));
  }

  // Takes a block where it lies, 64-byte aligned; `memory` keeps it there. Whatever the bytes are, a matrix that this
  // returns can be used: kConfig and kSparse as read_header and validate have it.
  static Result<PackedMatrix> from_block(ThreadPool& pool, std::shared_ptr<const void> memory, const uint8_t* data,
                                         int64_t bytes);

  // Writes row-major [rows, cols] floats: exactly what is stored.
  void unpack(ThreadPool& pool, float* out) const;
  // int8 only: writes row-major [rows, cols] q, −127 … 127, and row-major [rows, groups] scales, f16.
  void unpack_codes(ThreadPool& pool, int8_t* codes, uint16_t* scales) const;

  // Checks masks, offsets and lengths against each other, so that no product leaves the block; kSparse says what is
  // wrong.
  Status validate(ThreadPool& pool) const;
  Status validate() const;

  // The same elements with zeros in their places, for a machine that has no product for the format.
  Result<PackedMatrix> to_dense(ThreadPool& pool) const;

  const Format& format() const { return block_.format; }
  // What the checkpoint held.
  DType source() const { return block_.source; }
  int64_t rows() const { return block_.rows; }
  int64_t cols() const { return block_.cols; }
  int64_t tile_rows() const { return block_.tile_rows(); }
  // Inputs with padding.
  int64_t padded_cols() const { return block_.padded_cols(); }
  // Vectors in a tile row.
  int64_t vectors() const { return block_.vectors(); }
  // Scale groups in a tile row; int8 and int4 only.
  int64_t groups() const { return block_.groups(); }
  // What a product reads: elements, masks, scales and offsets.
  int64_t bytes() const;

  // The whole block, header and padding included.
  const uint8_t* block() const { return data_; }
  int64_t block_bytes() const { return block_.total_bytes(); }

  // The parts of a tile row, for kernels. Vector loads may run up to 64 bytes past the end of any part.
  const uint8_t* elements(int64_t tile_row) const { return data_ + kBlockHeader + element_offset(tile_row); }
  // bf16: 32 bits a vector; int8, int4: 64.
  const uint32_t* masks(int64_t tile_row) const { return masks_ + tile_row * vectors() * block_.mask_words(); }
  const uint16_t* scales(int64_t tile_row) const { return scales_ + tile_row * groups() * kTileRows; }

 private:
  PackedMatrix(const PackedBlock& block, std::shared_ptr<const void> memory, const uint8_t* data);

  // Bytes before a tile row's elements.
  int64_t element_offset(int64_t tile_row) const {
    return offsets_ != nullptr ? offsets_[tile_row] : tile_row * tile_bytes_;
  }
  // Bytes of elements that the masks of a tile row ask for.
  int64_t counted_bytes(int64_t tile_row) const;
  // Calls put(row, col, code) for every element, stored or not, of a tile row with its padding.
  template <class Put>
  void each_code(int64_t tile_row, const Put& put) const;
  // unpack() of a tile row of bf16 or f32, whose codes are the upper bits of floats; several times as fast as by codes.
  template <class Code>
  void unpack_floats(int64_t tile_row, float* out) const;

  PackedBlock block_;
  int64_t tile_bytes_ = 0;
  std::shared_ptr<const void> memory_;
  const uint8_t* data_ = nullptr;
  const uint32_t* masks_ = nullptr;
  const uint16_t* scales_ = nullptr;  // f16
  const int64_t* offsets_ = nullptr;  // bitmap only
};

}  // namespace espalier
