// Where a weight lies in a checkpoint, and reading it from there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/mapped_file.h"
#include "core/aligned.h"
#include "core/dtype.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "sparse/matrix_source.h"

namespace espalier {

// A byte range of a checkpoint file.
struct FileRange {
  std::shared_ptr<MappedFile> file;
  int64_t offset = 0;
  int64_t bytes = 0;
};

// A matrix [rows, cols] (a vector is [1, n]) stored dense, as a bitmask with its kept values, or packed.
struct WeightRef {
  std::string name;  // for messages
  DType dtype = DType::kBF16;
  int64_t rows = 0;
  int64_t cols = 0;
  FileRange values;     // dense elements, or the kept ones
  FileRange bitmask;    // [rows][ceil(cols / 8)], bit c & 7 of byte c >> 3; empty for dense
  bool packed = false;  // `values` is the block of a PackedMatrix; dtype is what it was packed from

  bool present() const { return rows > 0; }
  bool is_bitmask() const { return bitmask.bytes > 0; }
  bool is_packed() const { return packed; }
};

// Reads a range into `out`, on the pool's threads if there is one. kOutOfMemory; kChanged and kIo as MappedFile::read.
Status read_range(const FileRange& range, ThreadPool* pool, AlignedBuffer<uint8_t>& out);

// A weight read into memory, always dense.
class HostMatrix {
 public:
  // Reads with pread, so that a file truncated meanwhile is kChanged or kTruncated and not a fault; kSparse if a
  // bitmask contradicts its values; kOutOfMemory. With a pool its threads read.
  static Result<HostMatrix> load(const WeightRef& ref, ThreadPool* pool = nullptr);

  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  // For packing; this must outlive it.
  MatrixSource source() const { return {dtype_, rows_, cols_, bytes_.data()}; }
  void read_row(int64_t row, float* out) const;
  std::vector<float> to_floats() const;

 private:
  DType dtype_ = DType::kBF16;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  AlignedBuffer<uint8_t> bytes_;
};

}  // namespace espalier
