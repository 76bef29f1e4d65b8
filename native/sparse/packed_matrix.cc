#include "sparse/packed_matrix.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>

#include "core/aligned.h"
#include "sparse/tile.h"
#include "sparse/tile_packer.h"

namespace espalier {
namespace {

int element_size(Values values) { return values == Values::kF32 ? 4 : values == Values::kBf16 ? 2 : 1; }

// Elements of a vector.
int vector_lanes(Values values) { return kTileRows * vector_step(values); }

}  // namespace

PackedMatrix::PackedMatrix(const PackedBlock& block, std::shared_ptr<const void> memory, const uint8_t* data)
    : block_(block), tile_bytes_(block.tile_bytes()), memory_(std::move(memory)), data_(data) {
  if (block.format.storage != Storage::kDense) masks_ = reinterpret_cast<const uint32_t*>(data + block.masks_at());
  if (is_quantised(block.format.values)) scales_ = reinterpret_cast<const uint16_t*>(data + block.scales_at());
  if (block.format.storage == Storage::kBitmap) offsets_ = reinterpret_cast<const int64_t*>(data + block.offsets_at());
}

Result<PackedMatrix> PackedMatrix::from_block(ThreadPool& pool, std::shared_ptr<const void> memory, const uint8_t* data,
                                              int64_t bytes) {
  if (reinterpret_cast<uintptr_t>(data) % kBlockAlignment != 0) {
    return Status(Code::kSparse,
                  "a packed matrix does not begin at a multiple of " + std::to_string(kBlockAlignment) + " bytes");
  }
  Result<PackedBlock> block = PackedBlock::read_header(data, bytes);
  if (!block.is_ok()) return block.status();
  PackedMatrix matrix(block.value(), std::move(memory), data);
  ESPALIER_TRY(matrix.validate(pool));
  return matrix;
}

int64_t PackedMatrix::bytes() const {
  return block_.element_bytes + block_.mask_bytes() + block_.scale_bytes() + block_.offset_bytes();
}

int64_t PackedMatrix::counted_bytes(int64_t tile_row) const {
  if (masks_ == nullptr) return tile_bytes_;
  return tile_packer().stored_bytes(block_.format.values, masks(tile_row), vectors());
}

Status PackedMatrix::validate() const {
  ThreadPool pool(1);
  return validate(pool);
}

Status PackedMatrix::validate(ThreadPool& pool) const {
  if (masks_ == nullptr) return Status::ok();
  if (offsets_ != nullptr && (offsets_[0] != 0 || offsets_[tile_rows()] != block_.element_bytes)) {
    return Status(Code::kSparse, "the offsets run from " + std::to_string(offsets_[0]) + " to " +
                                     std::to_string(offsets_[tile_rows()]) + ", the elements take " +
                                     std::to_string(block_.element_bytes) + " bytes");
  }
  // Differences that are right each lead from the first offset to the last through none outside the elements. Unsigned,
  // because the offsets may be anything.
  const auto held = [&](int64_t t) {
    return static_cast<int64_t>(static_cast<uint64_t>(element_offset(t + 1)) -
                                static_cast<uint64_t>(element_offset(t)));
  };
  std::atomic<int64_t> wrong{tile_rows()};
  pool.parallel_for(tile_rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end && t < wrong.load(std::memory_order_relaxed); ++t) {
      if (counted_bytes(t) == held(t)) continue;
      for (int64_t first = wrong; t < first && !wrong.compare_exchange_weak(first, t);) {
      }
    }
  });
  if (wrong == tile_rows()) return Status::ok();
  return Status(Code::kSparse, "tile row " + std::to_string(wrong) + " holds " + std::to_string(held(wrong)) +
                                   " bytes of elements, its mask says " + std::to_string(counted_bytes(wrong)));
}

template <class Put>
void PackedMatrix::each_code(int64_t tile_row, const Put& put) const {
  const Values values = block_.format.values;
  const int lanes = vector_lanes(values);
  const auto size = static_cast<size_t>(element_size(values));
  const uint8_t* next = elements(tile_row);
  const uint32_t* mask = masks_ != nullptr ? masks(tile_row) : nullptr;
  const auto is_stored = [&](int64_t i) { return mask == nullptr || ((mask[i / 32] >> (i % 32)) & 1u) != 0; };
  if (values != Values::kInt4) {
    for (int64_t i = 0; i < vectors() * lanes; ++i) {
      uint32_t code = zero_code(values);
      if (is_stored(i)) {
        code = 0;
        __builtin_memcpy(&code, next, size);
        next += size;
      }
      put(i, code);
    }
    return;
  }
  // Elements that share bytes with as many others: a vector of a dense matrix, a group of a sparse one.
  const int64_t half = mask == nullptr ? lanes : kGroup * kTileRows;
  const int64_t all = vectors() * lanes;
  for (int64_t first = 0; first < all; first += 2 * half) {
    int64_t taken[2] = {0, 0};
    for (int low = 0; low < 2; ++low) {
      const int64_t end = std::min(first + (low + 1) * half, all);
      for (int64_t i = first + low * half; i < end; ++i) {
        put(i, is_stored(i) ? (next[taken[low]++] >> (low == 0 ? 4 : 0)) & 0x0fu : zero_code(values));
      }
    }
    next += std::max(taken[0], taken[1]);
  }
}

template <class Code>
void PackedMatrix::unpack_floats(int64_t tile_row, float* out) const {
  constexpr int64_t kStep = sizeof(float) / sizeof(Code);
  constexpr int kShift = 32 - 8 * static_cast<int>(sizeof(Code));
  const int64_t first = tile_row * kTileRows;
  const int64_t count = std::min<int64_t>(kTileRows, rows() - first);
  const uint8_t* next = elements(tile_row);
  const uint32_t* mask = masks_ != nullptr ? masks(tile_row) : nullptr;
  for (int64_t v = 0; v < vectors(); ++v) {
    std::array<Code, kTileRows * kStep> codes{};
    if (mask == nullptr) {
      __builtin_memcpy(codes.data(), next, sizeof(codes));
      next += sizeof(codes);
    } else {
      for (uint32_t bits = mask[v]; bits != 0; bits &= bits - 1) {
        __builtin_memcpy(codes.data() + std::countr_zero(bits), next, sizeof(Code));
        next += sizeof(Code);
      }
    }
    const int64_t column = v * kStep;
    const int64_t columns = std::min(kStep, cols() - column);
    for (int64_t r = 0; r < count; ++r) {
      float* row = out + (first + r) * cols() + column;
      for (int64_t k = 0; k < columns; ++k) {
        row[k] = std::bit_cast<float>(static_cast<uint32_t>(codes[static_cast<size_t>(r * kStep + k)]) << kShift);
      }
    }
  }
}

void PackedMatrix::unpack(ThreadPool& pool, float* out) const {
  const Values values = block_.format.values;
  if (!is_quantised(values)) {
    pool.parallel_for(tile_rows(), 1, [&](int64_t t, int64_t) {
      if (values == Values::kBf16) {
        unpack_floats<uint16_t>(t, out);
      } else {
        unpack_floats<uint32_t>(t, out);
      }
    });
    return;
  }
  const int step = vector_step(values);
  const int lanes = vector_lanes(values);
  pool.parallel_for(tile_rows(), 1, [&](int64_t t, int64_t) {
    each_code(t, [&](int64_t i, uint32_t code) {
      const int64_t row = t * kTileRows + (i % lanes) / step;
      const int64_t col = (i / lanes) * step + i % step;
      if (row >= rows() || col >= cols()) return;
      out[row * cols() + col] = decode(values, code, scales_ != nullptr ? scales(t) : nullptr, col / kGroup,
                                       static_cast<int>(row % kTileRows));
    });
  });
}

void PackedMatrix::unpack_codes(ThreadPool& pool, int8_t* codes, uint16_t* out_scales) const {
  const int step = vector_step(Values::kInt8);
  const int lanes = vector_lanes(Values::kInt8);
  pool.parallel_for(tile_rows(), 1, [&](int64_t t, int64_t) {
    each_code(t, [&](int64_t i, uint32_t code) {
      const int64_t row = t * kTileRows + (i % lanes) / step;
      const int64_t col = (i / lanes) * step + i % step;
      if (row >= rows() || col >= cols()) return;
      // No packing makes −128, but a file may hold anything.
      codes[row * cols() + col] = static_cast<int8_t>(std::max(static_cast<int>(code) - 128, -127));
    });
    for (int64_t row = t * kTileRows; row < std::min(rows(), (t + 1) * kTileRows); ++row) {
      for (int64_t g = 0; g < groups(); ++g)
        out_scales[row * groups() + g] = scales(t)[g * kTileRows + row % kTileRows];
    }
  });
}

Result<PackedMatrix> PackedMatrix::to_dense(ThreadPool& pool) const {
  if (masks_ == nullptr) return *this;
  PackedBlock block = block_;
  block.format = {Storage::kDense, block_.format.values};
  block.element_bytes = block.tile_rows() * block.tile_bytes();
  auto memory = std::make_shared<AlignedBuffer<uint8_t>>(static_cast<size_t>(block.total_bytes()));
  uint8_t* const data = memory->data();
  if (data == nullptr) return Status(Code::kOutOfMemory, "not enough memory to expand a matrix");
  block.write_header(data);
  const auto size = static_cast<size_t>(element_size(block.format.values));
  pool.parallel_for(tile_rows(), 1, [&](int64_t t, int64_t) {
    uint8_t* const to = data + kBlockHeader + t * block.tile_bytes();
    each_code(t, [&](int64_t i, uint32_t code) {
      if (block.format.values == Values::kInt4) {
        // Two vectors of 64 lanes in 64 bytes, the first in the high nibbles.
        uint8_t& byte = to[i / 128 * 64 + i % 64];
        byte = static_cast<uint8_t>(byte | code << (i / 64 % 2 == 0 ? 4 : 0));
      } else {
        __builtin_memcpy(to + static_cast<size_t>(i) * size, &code, size);
      }
    });
  });
  if (scales_ != nullptr) std::memcpy(data + block.scales_at(), scales_, static_cast<size_t>(block.scale_bytes()));
  return PackedMatrix(block, memory, data);
}

}  // namespace espalier
