#include "prune/merge_experts.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "prune/assignment.h"
#include "prune/panels.h"

namespace espalier {
namespace {

constexpr int64_t kDepth = 1024;  // of the panels that are multiplied at a time

// Of channels [first, first + columns): their rows of gate and up and their columns of down, from `depth` on.
void pack_channels(const ExpertValues& expert, int64_t first, int64_t columns, int64_t from, int64_t depth,
                   std::array<float*, 3> panels) {
  pack_transposed(expert.gate.data() + first * expert.hidden + from, expert.hidden, columns, depth, panels[0]);
  pack_transposed(expert.up.data() + first * expert.hidden + from, expert.hidden, columns, depth, panels[1]);
  for (int64_t h = 0; h < depth; ++h) {
    float* row = panels[2] + h * kPanel;
    std::copy_n(expert.down.data() + (from + h) * expert.width + first, columns, row);
    std::fill(row + columns, row + kPanel, 0.0f);
  }
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
  const int64_t panels = panel_count(width);
  const PanelKernels<float>& kernels = panel_kernels().f32;
  std::vector<float> gain(static_cast<size_t>(width * width));
  pool.parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> packed(static_cast<size_t>(6 * kDepth * kPanel));
    const auto panel = [&](int64_t index) { return packed.data() + index * kDepth * kPanel; };
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t from = 0; from < hidden; from += kDepth) {
        const int64_t depth = std::min(kDepth, hidden - from);
        pack_channels(reference, p * kPanel, panel_width(width, p), from, depth, {panel(0), panel(1), panel(2)});
        for (int64_t q = 0; q < panels; ++q) {
          pack_channels(other, q * kPanel, panel_width(width, q), from, depth, {panel(3), panel(4), panel(5)});
          float* out = gain.data() + p * kPanel * width + q * kPanel;
          for (int64_t m = 0; m < 3; ++m) {
            update_tile(kernels, depth, panel(m), panel(3 + m), 1.0f, out, width, panel_width(width, p),
                        panel_width(width, q));
          }
        }
      }
    }
  });
  // Weights that are let through with NaN or infinity have no order.
  for (float& value : gain) value = std::isfinite(value) ? value : 0.0f;
  return good_assignment(gain, width, cancel);
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
