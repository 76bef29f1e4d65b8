#include "sparse/packed_matrix.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <vector>

#include "sparse/tile.h"

namespace espalier {
namespace {

Status no_memory() { return {Code::kOutOfMemory, "not enough memory to pack a matrix"}; }

// −0 is a value of its own: packing keeps it.
bool is_zero(float value) { return std::bit_cast<uint32_t>(value) == 0; }

int64_t element_bytes(Values values) { return values == Values::kF32 ? 4 : values == Values::kBf16 ? 2 : 1; }

// The elements to store, a byte each. For n:m a group with fewer than n non-zeros stores zeros too, lowest inputs
// first. False if a group has more than n.
bool choose_stored(const Format& format, int64_t padded_cols, const Tile& tile, std::vector<uint8_t>& stored) {
  stored = tile.nonzero;
  if (format.storage == Storage::kDense) std::fill(stored.begin(), stored.end(), uint8_t{1});
  if (format.storage != Storage::kNm) return true;
  const int step = vector_step(format.values);
  for (int64_t first = 0; first < padded_cols; first += format.m) {
    for (int r = 0; r < kTileRows; ++r) {
      const auto at = [&](int64_t k) -> uint8_t& {
        return stored[static_cast<size_t>((k / step) * kTileRows * step + r * step + k % step)];
      };
      int kept = 0;
      for (int64_t k = first; k < first + format.m; ++k) kept += at(k);
      if (kept > format.n) return false;
      for (int64_t k = first; kept < format.n; ++k) {
        kept += at(k) == 0;
        at(k) = 1;
      }
    }
  }
  return true;
}

// The stored elements of a vector as bits; `stored` has a byte of 0 or 1 for each of its `lanes` ≤ 64 elements.
uint64_t mask_of(const uint8_t* stored, int lanes) {
  uint64_t mask = 0;
  for (int i = 0; i < lanes; i += 8) {
    uint64_t bytes;
    __builtin_memcpy(&bytes, stored + i, sizeof bytes);
    // Eight bytes of 0 or 1 become eight bits: the multiplication brings byte k to bit 56 + k.
    mask |= ((bytes * 0x0102040810204080u) >> 56) << i;
  }
  return mask;
}

// Bytes that a tile row's elements take, from the masks of its vectors.
int64_t stored_bytes(Values values, const std::vector<uint64_t>& masks) {
  int64_t bytes = 0;
  if (values == Values::kInt4) {
    for (size_t v = 0; v < masks.size(); v += 2)
      bytes += std::max(std::popcount(masks[v]), std::popcount(masks[v + 1]));
    return bytes;
  }
  for (const uint64_t mask : masks) bytes += std::popcount(mask) * element_bytes(values);
  return bytes;
}

// Writes the codes of one vector that its mask names; returns where the next go.
template <class T>
uint8_t* write_codes(const uint32_t* codes, uint64_t mask, uint8_t* out) {
  for (; mask != 0; mask &= mask - 1, out += sizeof(T)) {
    const T code = static_cast<T>(codes[std::countr_zero(mask)]);
    __builtin_memcpy(out, &code, sizeof code);
  }
  return out;
}

uint8_t* write_nibbles(const uint32_t* first, uint64_t first_mask, const uint32_t* second, uint64_t second_mask,
                       uint8_t* out) {
  const int bytes = std::max(std::popcount(first_mask), std::popcount(second_mask));
  for (int i = 0; i < bytes; ++i) {
    uint32_t high = zero_code(Values::kInt4);
    uint32_t low = high;
    if (first_mask != 0) high = first[std::countr_zero(first_mask)];
    if (second_mask != 0) low = second[std::countr_zero(second_mask)];
    first_mask &= first_mask - 1;
    second_mask &= second_mask - 1;
    out[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return out + bytes;
}

void write_elements(Values values, const Tile& tile, const std::vector<uint64_t>& masks, uint8_t* out) {
  const int lanes = vector_lanes(values);
  for (size_t v = 0; v < masks.size(); ++v) {
    const uint32_t* codes = tile.codes.data() + v * static_cast<size_t>(lanes);
    switch (values) {
      case Values::kF32: out = write_codes<uint32_t>(codes, masks[v], out); break;
      case Values::kBf16: out = write_codes<uint16_t>(codes, masks[v], out); break;
      case Values::kInt8: out = write_codes<uint8_t>(codes, masks[v], out); break;
      case Values::kInt4:
        out = write_nibbles(codes, masks[v], codes + lanes, masks[v + 1], out);
        ++v;
        break;
    }
  }
}

}  // namespace

int64_t PackedMatrix::padded_cols() const {
  const int64_t unit = is_quantised(format_.values) ? kGroup : vector_step(format_.values);
  return (cols_ + unit - 1) / unit * unit;
}

int64_t PackedMatrix::element_offset(int64_t tile_row) const {
  const int64_t per_vector = format_.values == Values::kInt4 ? 32 : 64;
  switch (format_.storage) {
    case Storage::kDense: return tile_row * vectors() * per_vector;
    case Storage::kBitmap: return offsets_[static_cast<size_t>(tile_row)];
    case Storage::kNm: {
      const int64_t kept = padded_cols() / format_.m * format_.n * kTileRows;
      return tile_row * (format_.values == Values::kInt4 ? kept / 2 : kept * element_bytes(format_.values));
    }
  }
  return 0;
}

Result<PackedMatrix> PackedMatrix::pack(ThreadPool& pool, Format format, int64_t rows, int64_t cols,
                                        const RowReader& read) {
  if (rows <= 0 || cols <= 0) return Status(Code::kUsage, "a matrix needs at least one row and one column");
  if (!format_exists(format, cols)) {
    return Status(Code::kUsage, "there is no format " + format.name() + " for " + std::to_string(cols) + " columns");
  }
  PackedMatrix matrix;
  matrix.format_ = format;
  matrix.rows_ = rows;
  matrix.cols_ = cols;
  const int64_t tiles = matrix.tile_rows();
  const int64_t vectors = matrix.vectors();
  const int64_t padded = matrix.padded_cols();
  const int lanes = vector_lanes(format.values);
  std::atomic<bool> fits{true};

  // Calls use(tile, masks) with a tile row; its codes are made only if `encode`.
  const auto with_tile = [&](int64_t tile_row, bool encode, auto&& use) {
    const int count = static_cast<int>(std::min<int64_t>(kTileRows, rows - tile_row * kTileRows));
    std::vector<float> floats(static_cast<size_t>(kTileRows * padded));
    for (int r = 0; r < count; ++r) read(tile_row * kTileRows + r, floats.data() + r * padded);
    Tile tile;
    std::vector<uint8_t> stored;
    mark_nonzero(format.values, padded, floats.data(), tile);
    if (encode) encode_tile(format.values, padded, floats.data(), tile);
    if (!choose_stored(format, padded, tile, stored)) fits.store(false);
    std::vector<uint64_t> masks(static_cast<size_t>(vectors));
    for (int64_t v = 0; v < vectors; ++v) masks[static_cast<size_t>(v)] = mask_of(stored.data() + v * lanes, lanes);
    use(tile, masks);
  };

  // Where each tile row starts: known before for dense and n:m, counted for bitmap.
  if (format.storage == Storage::kBitmap) {
    matrix.offsets_.reset(static_cast<size_t>(tiles) + 1);
    if (matrix.offsets_.data() == nullptr) return no_memory();
    pool.parallel_for(tiles, 1, [&](int64_t t, int64_t) {
      with_tile(t, false, [&](const Tile&, const std::vector<uint64_t>& masks) {
        matrix.offsets_[static_cast<size_t>(t) + 1] = stored_bytes(format.values, masks);
      });
    });
    for (int64_t t = 0; t < tiles; ++t) {
      matrix.offsets_[static_cast<size_t>(t) + 1] += matrix.offsets_[static_cast<size_t>(t)];
    }
  }
  matrix.elements_.reset(static_cast<size_t>(matrix.element_offset(tiles)));
  if (format.storage != Storage::kDense) {
    matrix.masks_.reset(static_cast<size_t>(tiles * vectors * matrix.mask_words()));
    if (matrix.masks_.data() == nullptr) return no_memory();
  }
  if (is_quantised(format.values)) {
    matrix.scales_.reset(static_cast<size_t>(tiles * matrix.groups() * kTileRows));
    if (matrix.scales_.data() == nullptr) return no_memory();
  }
  if (matrix.elements_.data() == nullptr) return no_memory();
  pool.parallel_for(tiles, 1, [&](int64_t t, int64_t) {
    with_tile(t, true, [&](const Tile& tile, const std::vector<uint64_t>& masks) {
      if (!fits.load()) return;
      write_elements(format.values, tile, masks, matrix.elements_.data() + matrix.element_offset(t));
      std::copy(tile.scales.begin(), tile.scales.end(), matrix.scales_.data() + t * matrix.groups() * kTileRows);
      if (format.storage == Storage::kDense) return;
      const int64_t words = matrix.mask_words();
      uint32_t* out = matrix.masks_.data() + t * vectors * words;
      for (int64_t v = 0; v < vectors; ++v) {
        for (int64_t w = 0; w < words; ++w)
          out[v * words + w] = static_cast<uint32_t>(masks[static_cast<size_t>(v)] >> (32 * w));
      }
    });
  });
  if (!fits) {
    return Status(Code::kUsage, "the matrix has more than " + std::to_string(format.n) +
                                    " non-zeros in some group of " + std::to_string(format.m) +
                                    " inputs, so it cannot be packed as " + format.name());
  }
  return matrix;
}

void PackedMatrix::unpack(ThreadPool& pool, float* out) const {
  const Values values = format_.values;
  const int step = vector_step(values);
  const int lanes = vector_lanes(values);
  const auto size = static_cast<size_t>(element_bytes(values));
  pool.parallel_for(tile_rows(), 1, [&](int64_t t, int64_t) {
    const uint8_t* next = elements(t);
    const uint32_t* mask = masks_.data() != nullptr ? masks(t) : nullptr;
    const auto is_stored = [&](int64_t i) { return mask == nullptr || ((mask[i / 32] >> (i % 32)) & 1u) != 0; };
    const auto put = [&](int64_t i, uint32_t code) {
      const int64_t row = t * kTileRows + (i % lanes) / step;
      const int64_t col = (i / lanes) * step + i % step;
      if (row >= rows_ || col >= cols_) return;
      out[row * cols_ + col] = decode(values, code, is_quantised(values) ? scales(t) : nullptr, col / kGroup,
                                      static_cast<int>(row % kTileRows));
    };
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
    for (int64_t v = 0; v < vectors(); v += 2) {
      int64_t taken[2] = {0, 0};
      for (int half = 0; half < 2; ++half) {
        for (int64_t i = (v + half) * lanes; i < (v + half + 1) * lanes; ++i) {
          put(i, is_stored(i) ? (next[taken[half]++] >> (half == 0 ? 4 : 0)) & 0x0fu : zero_code(values));
        }
      }
      next += std::max(taken[0], taken[1]);
    }
  });
}

Status PackedMatrix::validate() const {
  if (format_.storage == Storage::kDense) return Status::ok();
  const int64_t words = mask_words();
  for (int64_t t = 0; t < tile_rows(); ++t) {
    const uint32_t* mask = masks(t);
    const auto kept = [&](int64_t v) {
      int64_t count = 0;
      for (int64_t w = 0; w < words; ++w) count += std::popcount(mask[v * words + w]);
      return count;
    };
    int64_t bytes = 0;
    for (int64_t v = 0; v < vectors(); v += format_.values == Values::kInt4 ? 2 : 1) {
      bytes +=
          format_.values == Values::kInt4 ? std::max(kept(v), kept(v + 1)) : kept(v) * element_bytes(format_.values);
    }
    if (element_offset(t) + bytes != element_offset(t + 1)) {
      return Status(Code::kSparse, "tile row " + std::to_string(t) + " holds " +
                                       std::to_string(element_offset(t + 1) - element_offset(t)) +
                                       " bytes of elements, its mask says " + std::to_string(bytes));
    }
  }
  return Status::ok();
}

int64_t PackedMatrix::bytes() const {
  return static_cast<int64_t>(elements_.size() + masks_.size() * 4 + scales_.size() * 2 + offsets_.size() * 8);
}

Format choose_format(ThreadPool& pool, Values values, int64_t rows, int64_t cols, const PackedMatrix::RowReader& read) {
  if (values == Values::kF32) return {Storage::kDense, values};
  constexpr int kGroups[] = {4, 8, 16, 32};
  std::atomic<int64_t> zeros{0};
  std::atomic<bool> fits[4];
  for (int g = 0; g < 4; ++g) fits[g] = format_exists({Storage::kNm, values, kGroups[g] / 2, kGroups[g]}, cols);
  pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(cols));
    int64_t count = 0;
    for (int64_t r = begin; r < end; ++r) {
      read(r, row.data());
      for (const float value : row) count += is_zero(value);
      for (int g = 0; g < 4; ++g) {
        const int m = kGroups[g];
        for (int64_t k = 0; k < cols && fits[g].load(std::memory_order_relaxed); k += m) {
          int kept = 0;
          for (int i = 0; i < m; ++i) kept += !is_zero(row[static_cast<size_t>(k + i)]);
          if (kept > m / 2) fits[g].store(false, std::memory_order_relaxed);
        }
      }
    }
    zeros += count;
  });
  const double sparsity = static_cast<double>(zeros) / static_cast<double>(rows * cols);
  // At far more than half zeros a bitmap stores less than n:m with n = m / 2.
  if (sparsity < 0.6) {
    for (int g = 0; g < 4; ++g) {
      if (fits[g]) return {Storage::kNm, values, kGroups[g] / 2, kGroups[g]};
    }
  }
  return {sparsity >= kBitmapSparsity ? Storage::kBitmap : Storage::kDense, values};
}

}  // namespace espalier
