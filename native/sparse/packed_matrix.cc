#include "sparse/packed_matrix.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <vector>

namespace espalier {
namespace {

constexpr int kLanes = 32;  // bf16 elements of a vector

// One tile row as bf16 vectors [vectors][32], zero padded.
void read_tile(const PackedMatrix::RowReader& read, int64_t rows, int64_t cols, int64_t tile, float* row,
               uint16_t* out) {
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t index = tile * kTileRows + r;
    if (index >= rows) break;
    read(index, row);
    for (int64_t k = 0; k < cols; ++k) out[(k / 2) * kLanes + r * 2 + (k & 1)] = float_to_bf16(row[k]);
  }
}

// The elements to keep of each vector. For n:m a group with fewer than n non-zeros keeps zeros too, lowest inputs
// first. Returns false if a group has more than n.
bool tile_masks(const Format& format, int64_t vectors, const uint16_t* tile, uint32_t* masks) {
  const auto bit = [](int64_t k, int r) { return 1u << (r * 2 + (k & 1)); };
  for (int64_t v = 0; v < vectors; ++v) {
    uint32_t mask = 0;
    // Only +0 is dropped; -0 is a value of its own.
    for (int i = 0; i < kLanes; ++i) mask |= static_cast<uint32_t>(tile[v * kLanes + i] != 0) << i;
    masks[v] = mask;
  }
  if (format.storage != Storage::kNm) return true;
  for (int64_t first = 0; first < vectors * 2; first += format.m) {
    for (int r = 0; r < kTileRows; ++r) {
      int kept = 0;
      for (int64_t k = first; k < first + format.m; ++k) kept += (masks[k / 2] & bit(k, r)) != 0;
      if (kept > format.n) return false;
      for (int64_t k = first; kept < format.n; ++k) {
        if (masks[k / 2] & bit(k, r)) continue;
        masks[k / 2] |= bit(k, r);
        ++kept;
      }
    }
  }
  return true;
}

bool format_exists(const Format& format, int64_t cols) {
  if (format.storage == Storage::kDense) return format.values == DType::kBF16 || format.values == DType::kF32;
  if (format.values != DType::kBF16) return false;
  if (format.storage == Storage::kBitmap) return true;
  return format.m > 0 && format.m % 2 == 0 && format.n > 0 && format.n <= format.m && cols % format.m == 0;
}

}  // namespace

const char* storage_name(Storage storage) {
  switch (storage) {
    case Storage::kDense: return "dense";
    case Storage::kBitmap: return "bitmap";
    case Storage::kNm: return "n:m";
  }
  return "dense";
}

std::string Format::name() const {
  const std::string prefix =
      storage == Storage::kNm ? std::to_string(n) + ":" + std::to_string(m) : std::string(storage_name(storage));
  return prefix + (values == DType::kBF16 ? " bf16" : " f32");
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

  if (format.values == DType::kF32) {
    matrix.f32_.reset(static_cast<size_t>(tiles * vectors * kTileRows));
    if (matrix.f32_.data() == nullptr) return Status(Code::kOutOfMemory, "not enough memory to pack a matrix");
    pool.parallel_for(tiles, 1, [&](int64_t tile, int64_t) {
      std::vector<float> row(static_cast<size_t>(cols));
      for (int r = 0; r < kTileRows && tile * kTileRows + r < rows; ++r) {
        read(tile * kTileRows + r, row.data());
        float* out = matrix.f32_.data() + tile * vectors * kTileRows + r;
        for (int64_t k = 0; k < cols; ++k) out[k * kTileRows] = row[static_cast<size_t>(k)];
      }
    });
    return matrix;
  }

  const auto with_tile = [&](int64_t tile, auto&& use) {
    std::vector<float> row(static_cast<size_t>(cols));
    std::vector<uint16_t> values(static_cast<size_t>(vectors * kLanes));
    read_tile(read, rows, cols, tile, row.data(), values.data());
    use(values.data());
  };
  if (format.storage == Storage::kDense) {
    matrix.bf16_.reset(static_cast<size_t>(tiles * vectors * kLanes));
    if (matrix.bf16_.data() == nullptr) return Status(Code::kOutOfMemory, "not enough memory to pack a matrix");
    pool.parallel_for(tiles, 1, [&](int64_t tile, int64_t) {
      with_tile(tile, [&](const uint16_t* values) {
        std::copy(values, values + vectors * kLanes, matrix.bf16_.data() + tile * vectors * kLanes);
      });
    });
    return matrix;
  }

  matrix.masks_.reset(static_cast<size_t>(tiles * vectors));
  std::vector<int64_t> kept(static_cast<size_t>(tiles) + 1, 0);
  std::atomic<bool> fits{true};
  if (matrix.masks_.data() == nullptr) return Status(Code::kOutOfMemory, "not enough memory to pack a matrix");
  pool.parallel_for(tiles, 1, [&](int64_t tile, int64_t) {
    with_tile(tile, [&](const uint16_t* values) {
      uint32_t* masks = matrix.masks_.data() + tile * vectors;
      if (!tile_masks(format, vectors, values, masks)) fits.store(false);
      int64_t count = 0;
      for (int64_t v = 0; v < vectors; ++v) count += std::popcount(masks[v]);
      kept[static_cast<size_t>(tile) + 1] = count;
    });
  });
  if (!fits) {
    return Status(Code::kUsage, "the matrix has more than " + std::to_string(format.n) +
                                    " non-zeros in some group of " + std::to_string(format.m) +
                                    " inputs, so it cannot be packed as " + format.name());
  }
  for (int64_t t = 0; t < tiles; ++t) kept[static_cast<size_t>(t) + 1] += kept[static_cast<size_t>(t)];
  if (format.storage == Storage::kBitmap) {
    matrix.offsets_.reset(static_cast<size_t>(tiles) + 1);
    if (matrix.offsets_.data() == nullptr) return Status(Code::kOutOfMemory, "not enough memory to pack a matrix");
    std::copy(kept.begin(), kept.end(), matrix.offsets_.data());
  }
  matrix.bf16_.reset(static_cast<size_t>(kept.back()));
  if (matrix.bf16_.data() == nullptr) return Status(Code::kOutOfMemory, "not enough memory to pack a matrix");
  pool.parallel_for(tiles, 1, [&](int64_t tile, int64_t) {
    with_tile(tile, [&](const uint16_t* values) {
      uint16_t* out = matrix.bf16_.data() + kept[static_cast<size_t>(tile)];
      const uint32_t* masks = matrix.masks_.data() + tile * vectors;
      for (int64_t v = 0; v < vectors; ++v) {
        for (uint32_t mask = masks[v]; mask != 0; mask &= mask - 1)
          *out++ = values[v * kLanes + std::countr_zero(mask)];
      }
    });
  });
  return matrix;
}

int64_t PackedMatrix::value_offset(int64_t tile_row) const {
  switch (format_.storage) {
    case Storage::kDense: return tile_row * vectors() * (64 / (format_.values == DType::kBF16 ? 2 : 4));
    case Storage::kBitmap: return offsets_[static_cast<size_t>(tile_row)];
    case Storage::kNm: return tile_row * (cols_ / format_.m) * format_.n * kTileRows;
  }
  return 0;
}

void PackedMatrix::unpack(ThreadPool& pool, float* out) const {
  const int64_t per_tile = vectors();
  const int step = vector_step(format_.values);
  const int lanes = kTileRows * step;
  pool.parallel_for(tile_rows(), 1, [&](int64_t tile, int64_t) {
    int64_t next = value_offset(tile);
    for (int64_t v = 0; v < per_tile; ++v) {
      const uint32_t mask = format_.storage == Storage::kDense ? ~0u : masks_[static_cast<size_t>(tile * per_tile + v)];
      for (int i = 0; i < lanes; ++i) {
        const bool kept = (mask >> i) & 1u;
        float value = 0;
        if (kept) {
          const auto at = static_cast<size_t>(next++);
          value = format_.values == DType::kF32 ? f32_[at] : bf16_to_float(bf16_[at]);
        }
        const int64_t row = tile * kTileRows + i / step;
        const int64_t col = v * step + i % step;
        if (row < rows_ && col < cols_) out[row * cols_ + col] = value;
      }
    }
  });
}

Status PackedMatrix::validate() const {
  if (format_.storage == Storage::kDense) return Status::ok();
  const int64_t per_tile = vectors();
  for (int64_t tile = 0; tile < tile_rows(); ++tile) {
    int64_t count = 0;
    for (int64_t v = 0; v < per_tile; ++v) count += std::popcount(masks_[static_cast<size_t>(tile * per_tile + v)]);
    const int64_t end = tile + 1 < tile_rows() ? value_offset(tile + 1) : static_cast<int64_t>(bf16_.size());
    if (value_offset(tile) + count != end) {
      return Status(Code::kSparse, "tile row " + std::to_string(tile) + " holds " +
                                       std::to_string(end - value_offset(tile)) + " values, its mask says " +
                                       std::to_string(count));
    }
  }
  return Status::ok();
}

int64_t PackedMatrix::bytes() const {
  return static_cast<int64_t>(bf16_.size() * 2 + f32_.size() * 4 + masks_.size() * 4 + offsets_.size() * 8);
}

Format choose_format(ThreadPool& pool, DType values, int64_t rows, int64_t cols, const PackedMatrix::RowReader& read) {
  if (values != DType::kBF16) return {Storage::kDense, DType::kF32};
  constexpr int kGroups[] = {4, 8, 16, 32};
  std::atomic<int64_t> zeros{0};
  std::atomic<bool> fits[4] = {cols % 4 == 0, cols % 8 == 0, cols % 16 == 0, cols % 32 == 0};
  pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(cols));
    int64_t count = 0;
    for (int64_t r = begin; r < end; ++r) {
      read(r, row.data());
      for (float value : row) count += float_to_bf16(value) == 0;
      for (int g = 0; g < 4; ++g) {
        const int m = kGroups[g];
        for (int64_t k = 0; k < cols && fits[g].load(std::memory_order_relaxed); k += m) {
          int kept = 0;
          for (int i = 0; i < m; ++i) kept += float_to_bf16(row[static_cast<size_t>(k + i)]) != 0;
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
