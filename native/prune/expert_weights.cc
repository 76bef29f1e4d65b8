#include "prune/expert_weights.h"

namespace espalier {

ExpertWeights::ExpertWeights(const std::vector<FeedForwardPartSpec>& parts) {
  for (const FeedForwardPartSpec& part : parts) {
    auto& experts = slots_.emplace_back();
    for (const MlpSpec& mlp : part.experts) {
      experts.push_back({Slot{mlp.gate, {}, {}}, Slot{mlp.up, {}, {}}, Slot{mlp.down, {}, {}}});
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

std::vector<float> ExpertWeights::decode(const Slot& slot, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(static_cast<size_t>(slot.ref.rows * slot.ref.cols));
  load_floats(slot.ref.dtype, bytes.data(), 0, static_cast<int64_t>(values.size()), values.data());
  return values;
}

Result<std::vector<float>> ExpertWeights::dense(const MatrixId& id) const {
  const Slot& found = slot(id);
  if (!found.start.empty()) return decode(found, found.start);
  Result<HostMatrix> host = HostMatrix::load(found.ref);
  if (!host.is_ok()) return host.status();
  return host.value().to_floats();
}

Result<std::vector<float>> ExpertWeights::current(const MatrixId& id) const {
  const Slot& found = slot(id);
  return found.current.empty() ? dense(id) : decode(found, found.current);
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

void ExpertWeights::restructure(int part, const std::vector<int32_t>& from,
                                std::vector<std::optional<ExpertValues>>& merged) {
  std::vector<Expert>& experts = slots_[static_cast<size_t>(part)];
  std::vector<Expert> old = std::move(experts);
  experts.clear();
  for (size_t i = 0; i < from.size(); ++i) {
    experts.push_back(old[static_cast<size_t>(from[i])]);
    if (!merged[i]) continue;
    const auto expert = static_cast<int>(i);
    for (const auto& [role, values] : {std::pair{Role::kGate, &merged[i]->gate}, std::pair{Role::kUp, &merged[i]->up},
                                       std::pair{Role::kDown, &merged[i]->down}}) {
      const MatrixId id{part, expert, role};
      replace(id, *values);
      slot(id).start = std::move(slot(id).current);
      slot(id).current.clear();
    }
  }
}

}  // namespace espalier
