#include "engine/packed_weight.h"

#include <optional>

#include "core/aligned.h"
#include "kernels/cpu/kernels.h"

namespace espalier {
namespace {

Values values_for(Precision precision, DType dtype) {
  switch (precision) {
    case Precision::kBf16: return Values::kBf16;
    case Precision::kInt8: return Values::kInt8;
    case Precision::kInt4: return Values::kInt4;
    // f16 has more mantissa than bf16: f32 holds it exactly.
    case Precision::kSource: return dtype == DType::kBF16 ? Values::kBf16 : Values::kF32;
  }
  return Values::kBf16;
}

struct Plan {
  Format format;
  std::optional<ZeroSurvey> survey;
};

Plan plan_for(ThreadPool& pool, WeightPolicy policy, DType dtype, const MatrixSource& source) {
  Plan plan{{Storage::kDense, values_for(policy.precision, dtype)}, {}};
  if (!policy.sparse || plan.format.values == Values::kF32) return plan;
  plan.survey.emplace(pool, plan.format.values, source);
  const Format chosen = plan.survey->choose();
  if (cpu_kernels().takes(chosen)) plan.format = chosen;
  return plan;
}

}  // namespace

Result<PackedMatrix> pack_source(ThreadPool& pool, WeightPolicy policy, DType dtype, const MatrixSource& source) {
  const Plan plan = plan_for(pool, policy, dtype, source);
  return PackedMatrix::pack(pool, plan.format, source, plan.survey ? &*plan.survey : nullptr);
}

Result<PackedMatrix> pack_weight(ThreadPool& pool, WeightPolicy policy, const WeightRef& ref) {
  const Result<HostMatrix> host = HostMatrix::load(ref, &pool);
  if (!host.is_ok()) return host.status();
  return pack_source(pool, policy, ref.dtype, host.value().source());
}

Result<int64_t> measure_weight(ThreadPool& pool, WeightPolicy policy, const WeightRef& ref) {
  const Result<HostMatrix> host = HostMatrix::load(ref, &pool);
  if (!host.is_ok()) return host.status();
  const Plan plan = plan_for(pool, policy, ref.dtype, host.value().source());
  PackedBlock block{plan.format, ref.dtype, ref.rows, ref.cols, 0};
  if (plan.format.storage == Storage::kBitmap) {
    for (const int64_t bytes : plan.survey->tile_bytes()) block.element_bytes += bytes;
  } else {
    block.element_bytes = block.tile_rows() * block.tile_bytes();
  }
  return block.total_bytes();
}

Result<PackedMatrix> load_packed(ThreadPool& pool, WeightPolicy policy, const WeightRef& ref) {
  const FileRange& range = ref.values;
  std::shared_ptr<const void> memory = range.file;
  const uint8_t* data = range.file->data() + range.offset;
  if (policy.mapped) {
    ESPALIER_TRY(range.file->check_unchanged());
  } else {
    auto copy = std::make_shared<AlignedBuffer<uint8_t>>();
    ESPALIER_TRY(read_range(range, &pool, *copy));
    data = copy->data();
    memory = std::move(copy);
  }
  Result<PackedMatrix> loaded = PackedMatrix::from_block(pool, std::move(memory), data, range.bytes);
  if (!loaded.is_ok()) {
    const Status& status = loaded.status();
    return Status(status.code(), ref.values.file->path() + ": " + ref.name + ": " + status.message())
        .with_tensor(ref.name);
  }
  const PackedMatrix& matrix = loaded.value();
  if (matrix.rows() != ref.rows || matrix.cols() != ref.cols || matrix.source() != ref.dtype) {
    return Status(Code::kMismatch, ref.values.file->path() + ": " + ref.name + " is packed as " +
                                       dtype_name(matrix.source()) + " [" + std::to_string(matrix.rows()) + ", " +
                                       std::to_string(matrix.cols()) + "], but " + dtype_name(ref.dtype) + " [" +
                                       std::to_string(ref.rows) + ", " + std::to_string(ref.cols) + "] was expected")
        .with_tensor(ref.name);
  }
  const bool wanted = policy.sparse || matrix.format().storage == Storage::kDense;
  if (!wanted || !cpu_kernels().takes(matrix.format())) return matrix.to_dense(pool);
  return loaded;
}

std::vector<uint8_t> unpack_to_source(ThreadPool& pool, const PackedMatrix& matrix) {
  const int64_t count = matrix.rows() * matrix.cols();
  std::vector<float> floats(static_cast<size_t>(count));
  matrix.unpack(pool, floats.data());
  std::vector<uint8_t> out(static_cast<size_t>(count * (dtype_bits(matrix.source()) / 8)));
  pool.parallel_for(matrix.rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * matrix.cols(); i < end * matrix.cols(); ++i)
      store_float(matrix.source(), out.data(), i, floats[static_cast<size_t>(i)]);
  });
  return out;
}

}  // namespace espalier
