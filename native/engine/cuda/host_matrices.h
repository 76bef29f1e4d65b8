// Weights of a checkpoint on their way to the GPU. Plain C++.
#pragma once

#include <vector>

#include "core/aligned.h"
#include "engine/weight_policy.h"
#include "engine/weight_ref.h"
#include "kernels/cuda/tiled_weights.h"

namespace espalier::cuda {

// Matrices of one shape on the host, columns padded with zeros to what products take: all as bf16 bits, or all as int8
// codes with their scales.
class HostMatrices {
 public:
  HostMatrices(int64_t count, int64_t rows, int64_t cols);

  // Where the rows of a weight go: to rows of a matrix one after the other, or eight at a time into every other eight.
  struct Place {
    int64_t index = 0;
    int64_t first_row = 0;
    bool in_eights = false;
    int64_t row(int64_t r) const { return first_row + (in_eights ? r / 8 * 16 + r % 8 : r); }
  };

  // Reads a weight: as int8, rounded as on the CPU, where `precision` asks for it or where it is packed so, else as
  // bf16. kUsage for other types and for one that is not what those read before are; kOutOfMemory.
  Status read(ThreadPool& pool, Precision precision, const WeightRef& ref, const Place& place);

  bool hold_codes() const { return kind_ == Kind::kCodes; }
  std::vector<MatrixSource> sources() const;
  std::vector<CodeMatrix> codes() const;

 private:
  enum class Kind : uint8_t { kNone, kBits, kCodes };

  // Allocates before the first weight is read.
  Status hold(Kind kind, const WeightRef& ref);
  Status read_packed(ThreadPool& pool, Precision precision, const WeightRef& ref, const Place& place);
  template <class At>
  void write(ThreadPool& pool, const WeightRef& ref, const Place& place, const At& at);
  int64_t groups() const { return (cols_ + kGroup - 1) / kGroup; }

  Kind kind_ = Kind::kNone;
  int64_t count_;
  int64_t rows_;
  int64_t cols_;
  AlignedBuffer<uint16_t> bits_;
  AlignedBuffer<int8_t> codes_;
  AlignedBuffer<uint16_t> scales_;
};

}  // namespace espalier::cuda
