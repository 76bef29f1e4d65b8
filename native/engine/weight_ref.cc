#include "engine/weight_ref.h"

#include <bit>

namespace espalier {
namespace {

Status read_range(const FileRange& range, std::vector<uint8_t>& out) {
  out.resize(static_cast<size_t>(range.bytes));
  return range.file->read(static_cast<uint64_t>(range.offset), static_cast<uint64_t>(range.bytes), out.data());
}

// Spreads kept values to their places in `dense` (zeroed).
Status expand(const WeightRef& ref, const std::vector<uint8_t>& kept, const std::vector<uint8_t>& bitmask,
              std::vector<uint8_t>& dense) {
  const auto size = static_cast<size_t>(dtype_bits(ref.dtype) / 8);
  const auto row_bytes = static_cast<size_t>((ref.cols + 7) / 8);
  size_t next = 0;
  for (int64_t r = 0; r < ref.rows; ++r) {
    for (size_t b = 0; b < row_bytes; ++b) {
      const size_t first = static_cast<size_t>(r) * static_cast<size_t>(ref.cols) + b * 8;
      for (unsigned mask = bitmask[static_cast<size_t>(r) * row_bytes + b]; mask != 0; mask &= mask - 1) {
        const auto bit = static_cast<size_t>(std::countr_zero(mask));
        if (b * 8 + bit >= static_cast<size_t>(ref.cols) || (next + 1) * size > kept.size()) {
          return Status(Code::kSparse, "the bitmask has bits that no value belongs to").with_tensor(ref.name);
        }
        __builtin_memcpy(dense.data() + (first + bit) * size, kept.data() + next * size, size);
        ++next;
      }
    }
  }
  if (next * size != kept.size()) {
    return Status(Code::kSparse, "the bitmask names " + std::to_string(next) + " values, the file holds " +
                                     std::to_string(kept.size() / size))
        .with_tensor(ref.name);
  }
  return Status::ok();
}

}  // namespace

Result<HostMatrix> HostMatrix::load(const WeightRef& ref) {
  HostMatrix matrix;
  matrix.dtype_ = ref.dtype;
  matrix.rows_ = ref.rows;
  matrix.cols_ = ref.cols;
  if (!ref.is_bitmask()) {
    ESPALIER_TRY(read_range(ref.values, matrix.bytes_));
    return matrix;
  }
  std::vector<uint8_t> kept;
  std::vector<uint8_t> bitmask;
  ESPALIER_TRY(read_range(ref.values, kept));
  ESPALIER_TRY(read_range(ref.bitmask, bitmask));
  matrix.bytes_.resize(static_cast<size_t>(ref.rows * ref.cols) * static_cast<size_t>(dtype_bits(ref.dtype) / 8));
  ESPALIER_TRY(expand(ref, kept, bitmask, matrix.bytes_));
  return matrix;
}

void HostMatrix::read_row(int64_t row, float* out) const {
  load_floats(dtype_, bytes_.data(), row * cols_, cols_, out);
}

std::vector<float> HostMatrix::to_floats() const {
  std::vector<float> out(static_cast<size_t>(rows_ * cols_));
  load_floats(dtype_, bytes_.data(), 0, rows_ * cols_, out.data());
  return out;
}

}  // namespace espalier
