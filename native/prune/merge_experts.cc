#include "prune/merge_experts.h"

#include <array>
#include <cmath>
#include <string>

#include "prune/assignment.h"

namespace espalier {
namespace {

constexpr int64_t kLanes = 16;

// In independent lanes, so that the loop vectorises.
float dot(const float* a, const float* b, int64_t count) {
  std::array<float, kLanes> lanes{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[static_cast<size_t>(l)] += a[i + l] * b[i + l];
  }
  float sum = 0;
  for (; i < count; ++i) sum += a[i] * b[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

// [hidden, width] → [width, hidden]
std::vector<float> transposed(const ExpertValues& expert) {
  std::vector<float> rows(expert.down.size());
  for (int64_t h = 0; h < expert.hidden; ++h) {
    for (int64_t i = 0; i < expert.width; ++i) {
      rows[static_cast<size_t>(i * expert.hidden + h)] = expert.down[static_cast<size_t>(h * expert.width + i)];
    }
  }
  return rows;
}

void add(ExpertValues& sum, const ExpertValues& values, float weight, const std::vector<int32_t>& order) {
  for (int64_t i = 0; i < sum.width; ++i) {
    const int64_t from = order.empty() ? i : order[static_cast<size_t>(i)];
    for (int64_t h = 0; h < sum.hidden; ++h) {
      const auto to = static_cast<size_t>(i * sum.hidden + h);
      const auto row = static_cast<size_t>(from * sum.hidden + h);
      sum.gate[to] += weight * values.gate[row];
      sum.up[to] += weight * values.up[row];
    }
  }
  for (int64_t h = 0; h < sum.hidden; ++h) {
    for (int64_t i = 0; i < sum.width; ++i) {
      const int64_t from = order.empty() ? i : order[static_cast<size_t>(i)];
      sum.down[static_cast<size_t>(h * sum.width + i)] +=
          weight * values.down[static_cast<size_t>(h * sum.width + from)];
    }
  }
}

}  // namespace

Result<std::vector<int32_t>> match_channels(ThreadPool& pool, const ExpertValues& reference, const ExpertValues& other,
                                            const std::atomic<bool>* cancel) {
  const int64_t width = reference.width;
  const int64_t hidden = reference.hidden;
  const std::vector<float> down = transposed(reference);
  const std::vector<float> other_down = transposed(other);
  std::vector<float> gain(static_cast<size_t>(width * width));
  pool.parallel_for(width, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const float similarity = dot(reference.gate.data() + i * hidden, other.gate.data() + j * hidden, hidden) +
                                 dot(reference.up.data() + i * hidden, other.up.data() + j * hidden, hidden) +
                                 dot(down.data() + i * hidden, other_down.data() + j * hidden, hidden);
        // Weights that are let through with NaN or infinity have no order.
        gain[static_cast<size_t>(i * width + j)] = std::isfinite(similarity) ? similarity : 0.0f;
      }
    }
  });
  return best_assignment(gain, width, cancel);
}

Result<ExpertValues> merge_experts(ThreadPool& pool, const std::vector<ExpertMember>& members, bool align,
                                   const std::function<Result<ExpertValues>(int32_t)>& load,
                                   const std::atomic<bool>* cancel) {
  Result<ExpertValues> first = load(members[0].expert);
  if (!first.is_ok()) return first.status();
  const ExpertValues& reference = first.value();
  ExpertValues sum{.width = reference.width,
                   .hidden = reference.hidden,
                   .gate = std::vector<float>(reference.gate.size()),
                   .up = std::vector<float>(reference.up.size()),
                   .down = std::vector<float>(reference.down.size())};
  add(sum, reference, members[0].weight, {});
  for (size_t m = 1; m < members.size(); ++m) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return Status(Code::kAborted, "stopped");
    Result<ExpertValues> next = load(members[m].expert);
    if (!next.is_ok()) return next.status();
    if (next.value().width != sum.width) {
      return Status(Code::kMismatch, "experts of widths " + std::to_string(sum.width) + " and " +
                                         std::to_string(next.value().width) + " cannot be merged");
    }
    std::vector<int32_t> order;
    if (align) {
      Result<std::vector<int32_t>> matched = match_channels(pool, reference, next.value(), cancel);
      if (!matched.is_ok()) return matched.status();
      order = std::move(matched.value());
    }
    add(sum, next.value(), members[m].weight, order);
  }
  return sum;
}

}  // namespace espalier
