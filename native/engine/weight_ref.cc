#include "engine/weight_ref.h"

#include <algorithm>
#include <bit>
#include <mutex>

namespace espalier {
namespace {

// Bytes that one thread reads at a time.
constexpr int64_t kReadBytes = int64_t{1} << 20;
// Rows that one thread expands at a time.
constexpr int64_t kExpandRows = 64;

// The first of the errors that threads run into.
class FirstError {
 public:
  void add(Status status) {
    if (status.is_ok()) return;
    const std::lock_guard lock(mutex_);
    if (status_.is_ok()) status_ = std::move(status);
  }
  const Status& status() const { return status_; }

 private:
  std::mutex mutex_;
  Status status_;
};

template <class Body>
void for_ranges(ThreadPool* pool, int64_t count, int64_t grain, const Body& body) {
  if (pool != nullptr) {
    pool->parallel_for(count, grain, body);
  } else {
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count));
  }
}

// Spreads the kept values of a row to their places in `dense` (zeroed); the bits have been counted before.
template <class T>
void expand_row(const uint8_t* mask, size_t mask_bytes, const uint8_t* kept, uint8_t* dense) {
  for (size_t b = 0; b < mask_bytes; ++b) {
    for (unsigned bits = mask[b]; bits != 0; bits &= bits - 1, kept += sizeof(T)) {
      __builtin_memcpy(dense + (b * 8 + static_cast<size_t>(std::countr_zero(bits))) * sizeof(T), kept, sizeof(T));
    }
  }
}

Status expand(const WeightRef& ref, const AlignedBuffer<uint8_t>& kept, const AlignedBuffer<uint8_t>& bitmask,
              ThreadPool* pool, uint8_t* dense) {
  const auto size = static_cast<size_t>(dtype_bits(ref.dtype) / 8);
  const auto mask_bytes = static_cast<size_t>((ref.cols + 7) / 8);
  const unsigned padding = ref.cols % 8 == 0 ? 0 : 0xffu << (ref.cols % 8) & 0xffu;
  const auto mask_of = [&](int64_t row) { return bitmask.data() + static_cast<size_t>(row) * mask_bytes; };
  std::vector<size_t> first(static_cast<size_t>(ref.rows) + 1);
  for (int64_t r = 0; r < ref.rows; ++r) {
    size_t count = 0;
    for (size_t b = 0; b < mask_bytes; ++b) count += static_cast<size_t>(std::popcount(mask_of(r)[b]));
    if ((mask_of(r)[mask_bytes - 1] & padding) != 0)
      return Status(Code::kSparse, "the bitmask has bits that no value belongs to").with_tensor(ref.name);
    first[static_cast<size_t>(r) + 1] = first[static_cast<size_t>(r)] + count;
  }
  if (first.back() * size != kept.size()) {
    return Status(Code::kSparse, "the bitmask names " + std::to_string(first.back()) + " values, the file holds " +
                                     std::to_string(kept.size() / size))
        .with_tensor(ref.name);
  }
  const size_t row_bytes = static_cast<size_t>(ref.cols) * size;
  for_ranges(pool, ref.rows, kExpandRows, [&](int64_t begin, int64_t end) {
    std::fill(dense + static_cast<size_t>(begin) * row_bytes, dense + static_cast<size_t>(end) * row_bytes, uint8_t{0});
    for (int64_t r = begin; r < end; ++r) {
      const uint8_t* from = kept.data() + first[static_cast<size_t>(r)] * size;
      uint8_t* const to = dense + static_cast<size_t>(r) * row_bytes;
      if (size == 2)
        expand_row<uint16_t>(mask_of(r), mask_bytes, from, to);
      else
        expand_row<uint32_t>(mask_of(r), mask_bytes, from, to);
    }
  });
  return Status::ok();
}

}  // namespace

Status read_range(const FileRange& range, ThreadPool* pool, AlignedBuffer<uint8_t>& out) {
  out.reset_uninitialised(static_cast<size_t>(range.bytes));
  if (out.data() == nullptr) {
    return {Code::kOutOfMemory, "not enough memory for " + std::to_string(range.bytes) + " bytes of weights"};
  }
  FirstError error;
  for_ranges(pool, range.bytes, kReadBytes, [&](int64_t begin, int64_t end) {
    error.add(range.file->read(static_cast<uint64_t>(range.offset + begin), static_cast<uint64_t>(end - begin),
                               out.data() + begin));
  });
  return error.status();
}

Result<HostMatrix> HostMatrix::load(const WeightRef& ref, ThreadPool* pool) {
  if (ref.is_packed()) return Status(Code::kInternal, "a packed weight has no elements to read").with_tensor(ref.name);
  HostMatrix matrix;
  matrix.dtype_ = ref.dtype;
  matrix.rows_ = ref.rows;
  matrix.cols_ = ref.cols;
  if (!ref.is_bitmask()) {
    ESPALIER_TRY(read_range(ref.values, pool, matrix.bytes_));
    return matrix;
  }
  AlignedBuffer<uint8_t> kept;
  AlignedBuffer<uint8_t> bitmask;
  ESPALIER_TRY(read_range(ref.values, pool, kept));
  ESPALIER_TRY(read_range(ref.bitmask, pool, bitmask));
  const int64_t bytes = ref.rows * ref.cols * (dtype_bits(ref.dtype) / 8);
  matrix.bytes_.reset_uninitialised(static_cast<size_t>(bytes));
  if (matrix.bytes_.data() == nullptr)
    return Status(Code::kOutOfMemory, "not enough memory for " + std::to_string(bytes) + " bytes of weights");
  ESPALIER_TRY(expand(ref, kept, bitmask, pool, matrix.bytes_.data()));
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
