#include "prune/expert_weights.h"

namespace espalier {

namespace {

constexpr int64_t kValuesPerTask = 1 << 16;

}  // namespace

void store_floats(ThreadPool& pool, DType dtype, const std::vector<float>& values, std::vector<uint8_t>& out) {
  out.resize(values.size() * static_cast<size_t>(dtype_bits(dtype) / 8));
  pool.parallel_for(static_cast<int64_t>(values.size()), kValuesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) store_float(dtype, out.data(), i, values[static_cast<size_t>(i)]);
  });
}

void round_floats(ThreadPool& pool, DType dtype, std::vector<float>& values) {
  pool.parallel_for(static_cast<int64_t>(values.size()), kValuesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float& value = values[static_cast<size_t>(i)];
      uint8_t bytes[sizeof(float)];
      store_float(dtype, bytes, 0, value);
      value = load_float(dtype, bytes, 0);
    }
  });
}

std::vector<float> in_channel_order(const std::vector<float>& values, Role role, int64_t cols,
                                    const std::vector<int32_t>& order) {
  const size_t moved = role == Role::kDown ? 1 : static_cast<size_t>(cols);
  std::vector<float> ordered;
  ordered.reserve(values.size());
  for (size_t first = 0; first < values.size(); first += moved * order.size()) {
    for (const int32_t channel : order) {
      const auto begin = values.begin() + static_cast<ptrdiff_t>(first + static_cast<size_t>(channel) * moved);
      ordered.insert(ordered.end(), begin, begin + static_cast<ptrdiff_t>(moved));
    }
  }
  return ordered;
}

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
  const Slot& slot = slots_[static_cast<size_t>(id.part)][static_cast<size_t>(id.expert)][static_cast<size_t>(id.role)];
  if (slot.stored.empty()) {
    Result<HostMatrix> host = HostMatrix::load(slot.ref);
    if (!host.is_ok()) return host.status();
    return host.value().to_floats();
  }
  std::vector<float> values(static_cast<size_t>(slot.ref.rows * slot.ref.cols));
  load_floats(slot.ref.dtype, slot.stored.data(), 0, static_cast<int64_t>(values.size()), values.data());
  return values;
}

void ExpertWeights::restructure(int part, const std::vector<int32_t>& from, std::vector<Stored> merged) {
  std::vector<Expert>& experts = slots_[static_cast<size_t>(part)];
  const std::vector<Expert> old = std::move(experts);
  experts.clear();
  for (size_t i = 0; i < from.size(); ++i) {
    Expert& expert = experts.emplace_back(old[static_cast<size_t>(from[i])]);
    for (size_t role = 0; role < expert.size() && !merged[i][role].empty(); ++role) {
      expert[role].stored = std::move(merged[i][role]);
    }
  }
}

}  // namespace espalier
