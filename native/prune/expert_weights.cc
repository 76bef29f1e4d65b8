#include "prune/expert_weights.h"

namespace espalier {

ExpertWeights::ExpertWeights(const std::vector<FeedForwardPartSpec>& parts) {
  for (const FeedForwardPartSpec& part : parts) {
    auto& experts = slots_.emplace_back();
    for (const MlpSpec& mlp : part.experts) {
      experts.push_back({Slot{mlp.gate, {}}, Slot{mlp.up, {}}, Slot{mlp.down, {}}});
    }
  }
}

std::vector<MatrixId> ExpertWeights::ids() const {
  std::vector<MatrixId> all;
  for (int part = 0; part < parts(); ++part) {
    for (int expert = 0; expert < experts(part); ++expert) {
      for (const Role role : kRoles) all.push_back({part, expert, role});
    }
  }
  return all;
}

Result<std::vector<float>> ExpertWeights::dense(const MatrixId& id) const {
  Result<HostMatrix> host = HostMatrix::load(slot(id).ref);
  if (!host.is_ok()) return host.status();
  return host.value().to_floats();
}

Result<std::vector<float>> ExpertWeights::current(const MatrixId& id) const {
  const Slot& found = slot(id);
  if (found.current.empty()) return dense(id);
  std::vector<float> values(static_cast<size_t>(found.ref.rows * found.ref.cols));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = load_float(found.ref.dtype, found.current.data(), static_cast<int64_t>(i));
  }
  return values;
}

void ExpertWeights::replace(const MatrixId& id, std::vector<float>& values) {
  Slot& found = slot(id);
  const DType dtype = found.ref.dtype;
  found.current.resize(values.size() * static_cast<size_t>(dtype_bits(dtype) / 8));
  for (size_t i = 0; i < values.size(); ++i) {
    store_float(dtype, found.current.data(), static_cast<int64_t>(i), values[i]);
    values[i] = load_float(dtype, found.current.data(), static_cast<int64_t>(i));
  }
}

Result<std::span<const uint8_t>> ExpertWeights::bytes(const MatrixId& id) {
  Slot& found = slot(id);
  if (found.current.empty()) {
    Result<std::vector<float>> values = dense(id);
    if (!values.is_ok()) return values.status();
    replace(id, values.value());
  }
  return std::span<const uint8_t>(found.current);
}

}  // namespace espalier
