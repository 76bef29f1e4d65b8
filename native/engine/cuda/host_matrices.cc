#include "engine/cuda/host_matrices.h"

#include <cstring>

#include "engine/packed_weight.h"
#include "kernels/cuda/parts.h"

namespace espalier::cuda {
namespace {

Status not_taken(const WeightRef& ref, const std::string& found) {
  return Status(Code::kUsage, "the GPU multiplies bf16 and int8 weights, but " + ref.name + " is " + found +
                                  "; load it as bf16 (weights: bf16)")
      .with_tensor(ref.name);
}

}  // namespace

HostMatrices::HostMatrices(int64_t count, int64_t rows, int64_t cols)
    : count_(count), rows_(rows), cols_(part_stride(cols)) {}

Status HostMatrices::hold(Kind kind, const WeightRef& ref) {
  if (kind_ == kind) return Status::ok();
  if (kind_ != Kind::kNone) {
    return Status(Code::kUsage, "the GPU multiplies matrices of a layer together, but " + ref.name + " is " +
                                    (kind == Kind::kCodes ? "int8 and others are bf16" : "bf16 and others are int8") +
                                    "; round all of them, or none")
        .with_tensor(ref.name);
  }
  kind_ = kind;
  const auto size = static_cast<size_t>(count_ * rows_ * cols_);
  if (kind == Kind::kBits) {
    bits_.reset(size);
    if (bits_.data() != nullptr) return Status::ok();
  } else {
    codes_.reset(size);
    scales_.reset(static_cast<size_t>(count_ * rows_ * groups()));
    if (codes_.data() != nullptr && scales_.data() != nullptr) return Status::ok();
  }
  return Status(Code::kOutOfMemory, "not enough memory to pack weights for the GPU");
}

Status HostMatrices::read(ThreadPool& pool, Precision precision, const WeightRef& ref, const Place& place) {
  if (ref.is_packed() || precision == Precision::kInt8) return read_packed(pool, precision, ref, place);
  if (ref.dtype != DType::kBF16 && precision == Precision::kSource) return not_taken(ref, dtype_name(ref.dtype));
  ESPALIER_TRY(hold(Kind::kBits, ref));
  const Result<HostMatrix> host = HostMatrix::load(ref, &pool);
  if (!host.is_ok()) return host.status();
  std::vector<float> scratch;
  const uint8_t* elements = host.value().source().tile(0, scratch).data;
  write(pool, ref, place,
        [&](int64_t row, int64_t col) { return float_to_bf16(load_float(ref.dtype, elements, row * ref.cols + col)); });
  return Status::ok();
}

Status HostMatrices::read_packed(ThreadPool& pool, Precision precision, const WeightRef& ref, const Place& place) {
  const Result<PackedMatrix> packed = ref.is_packed()
                                          ? load_packed(pool, {.precision = precision, .mapped = true}, ref)
                                          : pack_weight(pool, {.precision = precision, .sparse = false}, ref);
  if (!packed.is_ok()) return packed.status();
  const PackedMatrix& matrix = packed.value();
  const auto count = static_cast<size_t>(ref.rows * ref.cols);
  if (matrix.format().values == Values::kBf16) {
    ESPALIER_TRY(hold(Kind::kBits, ref));
    std::vector<float> values(count);
    matrix.unpack(pool, values.data());
    write(pool, ref, place,
          [&](int64_t row, int64_t col) { return float_to_bf16(values[static_cast<size_t>(row * ref.cols + col)]); });
    return Status::ok();
  }
  if (matrix.format().values != Values::kInt8) return not_taken(ref, matrix.format().name());
  ESPALIER_TRY(hold(Kind::kCodes, ref));
  std::vector<int8_t> codes(count);
  std::vector<uint16_t> scales(static_cast<size_t>(ref.rows * matrix.groups()));
  matrix.unpack_codes(pool, codes.data(), scales.data());
  for (int64_t row = 0; row < ref.rows; ++row) {
    const int64_t to = place.index * rows_ + place.row(row);
    std::memcpy(codes_.data() + to * cols_, codes.data() + row * ref.cols, static_cast<size_t>(ref.cols));
    std::memcpy(scales_.data() + to * groups(), scales.data() + row * matrix.groups(),
                static_cast<size_t>(matrix.groups()) * sizeof(uint16_t));
  }
  return Status::ok();
}

template <class At>
void HostMatrices::write(ThreadPool& pool, const WeightRef& ref, const Place& place, const At& at) {
  pool.parallel_for(ref.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      uint16_t* out = bits_.data() + (place.index * rows_ + place.row(row)) * cols_;
      for (int64_t col = 0; col < ref.cols; ++col) out[col] = at(row, col);
    }
  });
}

std::vector<MatrixSource> HostMatrices::sources() const {
  std::vector<MatrixSource> list;
  for (int64_t i = 0; i < count_; ++i) list.emplace_back(DType::kBF16, rows_, cols_, bits_.data() + i * rows_ * cols_);
  return list;
}

std::vector<CodeMatrix> HostMatrices::codes() const {
  std::vector<CodeMatrix> list;
  for (int64_t i = 0; i < count_; ++i) {
    list.emplace_back(rows_, cols_, codes_.data() + i * rows_ * cols_, scales_.data() + i * rows_ * groups());
  }
  return list;
}

}  // namespace espalier::cuda
