// A packed matrix as one block of bytes, in memory and in a file alike:
//
//   header     64 bytes, below
//   elements   each of these four parts starts at a multiple of 64 bytes, after zeros
//   masks      uint32, bitmap and n:m
//   scales     f16, int8 and int4
//   offsets    int64 [tile rows + 1], bitmap: bytes of elements before each tile row
//   slack      64 zeros, which vector loads may read
//
// What the parts hold is said in packed_matrix.h. Numbers are little-endian. The header, at these bytes:
//
//    0  "espalier"            24  tile rows' height, 16
//    8  version, uint32       28  inputs that share a scale, 64
//   12  storage               32  rows, int64
//   13  values                40  cols, int64
//   14  type of the source    48  bytes of elements, int64
//   15  0                     56  0, int64
//   16  n, uint32
//   20  m, uint32
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/status.h"
#include "sparse/format.h"

namespace espalier {

inline constexpr int64_t kBlockAlignment = 64;
inline constexpr int64_t kBlockHeader = 64;
inline constexpr uint32_t kBlockVersion = 2;

// A matrix's shape and format, and from them where its parts lie in its block.
struct PackedBlock {
  Format format;
  DType source = DType::kBF16;  // what the checkpoint held: BF16, F16 or F32
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t element_bytes = 0;

  int64_t tile_rows() const { return (rows + kTileRows - 1) / kTileRows; }
  // Inputs with padding.
  int64_t padded_cols() const;
  // Vectors in a tile row.
  int64_t vectors() const { return padded_cols() / vector_step(format.values); }
  // Scale groups in a tile row; int8 and int4 only.
  int64_t groups() const { return padded_cols() / kGroup; }
  // 32-bit words of a vector's mask.
  int64_t mask_words() const { return is_quantised(format.values) ? 2 : 1; }
  // Bytes of a tile row's elements, the same for all; of a bitmap the most that one can take.
  int64_t tile_bytes() const;

  // Sizes of the parts in bytes, 0 for those that the format has not.
  int64_t mask_bytes() const;
  int64_t scale_bytes() const;
  int64_t offset_bytes() const;
  // Where they begin, from the start of the block.
  int64_t masks_at() const;
  int64_t scales_at() const;
  int64_t offsets_at() const;
  // Of the whole block, a multiple of 64.
  int64_t total_bytes() const;

  void write_header(uint8_t* out) const;
  // Reads and checks the header of a block of `bytes` bytes in all. kConfig for a version or constants that are not
  // this library's, kSparse for what contradicts itself or the size.
  static Result<PackedBlock> read_header(const uint8_t* header, int64_t bytes);
};

}  // namespace espalier
