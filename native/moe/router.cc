#include "moe/router.h"

#include <cmath>
#include <limits>
#include <string>

namespace espalier {
namespace {

// The k largest of the keys that are pushed, largest first, of equal ones the one pushed first.
class Best {
 public:
  Best(int32_t* ids, float* keys, int k) : ids_(ids), keys_(keys), k_(k) {}

  void push(int32_t id, float key) {
    if (size_ == k_ && !(key > keys_[k_ - 1])) return;
    int at = size_ < k_ ? size_++ : k_ - 1;
    for (; at > 0 && key > keys_[at - 1]; --at) {
      keys_[at] = keys_[at - 1];
      ids_[at] = ids_[at - 1];
    }
    keys_[at] = key;
    ids_[at] = id;
  }

 private:
  int32_t* ids_;
  float* keys_;
  int k_;
  int size_ = 0;
};

// Makes the choice for one token after the other.
class Choice {
 public:
  Choice(const RouterOptions& options, int64_t rows)
      : options_(options),
        rows_(rows),
        keys_(static_cast<size_t>(rows)),
        best_keys_(static_cast<size_t>(std::max(options.top_k, options.topk_group))),
        groups_(static_cast<size_t>(options.topk_group)),
        allowed_(static_cast<size_t>(options.n_group), options.n_group == options.topk_group) {}

  // Writes top_k rows.
  void choose(const float* scores, int32_t* ids) {
    for (size_t r = 0; r < keys_.size(); ++r) {
      const float key = options_.correction_bias.empty() ? scores[r] : scores[r] + options_.correction_bias[r];
      keys_[r] = std::isnan(key) ? -std::numeric_limits<float>::infinity() : key;
    }
    const int64_t size = rows_ / options_.n_group;
    if (options_.topk_group < options_.n_group) allow_groups(size);
    Best best(ids, best_keys_.data(), options_.top_k);
    for (size_t g = 0; g < allowed_.size(); ++g) {
      if (!allowed_[g]) continue;
      const int64_t first = static_cast<int64_t>(g) * size;
      for (int64_t r = first; r < first + size; ++r) best.push(static_cast<int32_t>(r), keys_[static_cast<size_t>(r)]);
    }
  }

 private:
  void allow_groups(int64_t size) {
    Best best(groups_.data(), best_keys_.data(), options_.topk_group);
    for (int g = 0; g < options_.n_group; ++g) {
      int32_t ids[2];
      float two[2] = {0, 0};
      Best best_two(ids, two, size > 1 ? 2 : 1);
      for (int64_t r = g * size; r < (g + 1) * size; ++r) best_two.push(0, keys_[static_cast<size_t>(r)]);
      best.push(g, two[0] + two[1]);
    }
    std::fill(allowed_.begin(), allowed_.end(), false);
    for (const int32_t g : groups_) allowed_[static_cast<size_t>(g)] = true;
  }

  const RouterOptions& options_;
  int64_t rows_;
  std::vector<float> keys_;
  std::vector<float> best_keys_;
  std::vector<int32_t> groups_;
  std::vector<bool> allowed_;
};

// Leaves out a token's experts from the first one on whose gate is small.
void skip_small(const RouterOptions& options, int32_t* ids, float* gates) {
  int kept = 1;
  while (kept < options.top_k && !(gates[kept] < options.skip_below[static_cast<size_t>(kept - 1)] * gates[0])) ++kept;
  float all = 0;
  float left = 0;
  for (int k = 0; k < options.top_k; ++k) {
    all += gates[k];
    if (k < kept) left += gates[k];
  }
  for (int k = 0; k < options.top_k; ++k) {
    if (k >= kept) ids[k] = -1;
    gates[k] = k < kept ? gates[k] * (all / left) : 0;
  }
}

}  // namespace

Status check_router(const RouterOptions& options, int64_t rows) {
  const auto usage = [](const std::string& what) { return Status(Code::kUsage, "a router " + what); };
  if (options.top_k < 1 || options.top_k > rows) {
    return usage("must choose between 1 and its " + std::to_string(rows) + " experts; found top k " +
                 std::to_string(options.top_k));
  }
  if (options.n_group < 1 || rows % options.n_group != 0) {
    return usage("needs groups of equal size; found " + std::to_string(options.n_group) + " groups of " +
                 std::to_string(rows) + " experts");
  }
  if (options.topk_group < 1 || options.topk_group > options.n_group) {
    return usage("must keep between 1 and its " + std::to_string(options.n_group) + " groups; found " +
                 std::to_string(options.topk_group));
  }
  const int64_t allowed = rows / options.n_group * options.topk_group;
  if (options.top_k > allowed) {
    return usage("cannot choose " + std::to_string(options.top_k) + " experts from groups that hold " +
                 std::to_string(allowed));
  }
  if (!options.correction_bias.empty() && static_cast<int64_t>(options.correction_bias.size()) != rows) {
    return usage("of " + std::to_string(rows) + " experts needs as many values of correction bias; found " +
                 std::to_string(options.correction_bias.size()));
  }
  if (!options.skip_below.empty() && static_cast<int64_t>(options.skip_below.size()) != options.top_k - 1) {
    return usage("of top k " + std::to_string(options.top_k) + " needs one ratio fewer to skip experts by; found " +
                 std::to_string(options.skip_below.size()));
  }
  if (!std::isfinite(options.routed_scaling_factor)) return usage("needs a finite scaling factor");
  return Status::ok();
}

void route(const CpuKernels& kernels, const RouterOptions& options, float* logits, int64_t tokens, int64_t rows,
           int32_t* chosen, float* gates) {
  Choice choice(options, rows);
  for (int64_t t = 0; t < tokens; ++t) {
    float* scores = logits + t * rows;
    int32_t* ids = chosen + t * options.top_k;
    float* weights = gates + t * options.top_k;
    if (options.scoring == Scoring::kSoftmax) {
      kernels.softmax(scores, rows);
    } else {
      kernels.sigmoid(scores, rows);
    }
    choice.choose(scores, ids);
    float total = 0;
    for (int k = 0; k < options.top_k; ++k) total += weights[k] = scores[ids[k]];
    const float divisor = options.renormalise ? total + 1e-20f : 1.0f;
    for (int k = 0; k < options.top_k; ++k) weights[k] = weights[k] / divisor * options.routed_scaling_factor;
    if (!options.skip_below.empty()) skip_small(options, ids, weights);
  }
}

Dispatch dispatch(const int32_t* chosen, const float* gates, int64_t tokens, int top_k,
                  const std::vector<int32_t>& expert_of_row, int64_t experts) {
  Dispatch result;
  const int64_t slots = tokens * top_k;
  const auto expert_at = [&](int64_t i) { return static_cast<size_t>(expert_of_row[static_cast<size_t>(chosen[i])]); };
  result.first_slot.assign(static_cast<size_t>(experts) + 1, 0);
  for (int64_t i = 0; i < slots; ++i) {
    if (chosen[i] >= 0) ++result.first_slot[expert_at(i) + 1];
  }
  for (size_t e = 0; e < static_cast<size_t>(experts); ++e) result.first_slot[e + 1] += result.first_slot[e];

  result.token.resize(static_cast<size_t>(result.first_slot.back()));
  result.gate.resize(result.token.size());
  std::vector<int64_t> next(result.first_slot.begin(), result.first_slot.end() - 1);
  for (int64_t i = 0; i < slots; ++i) {
    if (chosen[i] < 0) continue;
    const auto slot = static_cast<size_t>(next[expert_at(i)]++);
    result.token[slot] = static_cast<int32_t>(i / top_k);
    result.gate[slot] = gates[i];
  }
  result.slots_of.assign(static_cast<size_t>(slots), -1);
  std::vector<int32_t> seen(static_cast<size_t>(tokens), 0);
  for (int64_t slot = 0; slot < result.slots(); ++slot) {
    const auto token = static_cast<size_t>(result.token[static_cast<size_t>(slot)]);
    result.slots_of[token * static_cast<size_t>(top_k) + static_cast<size_t>(seen[token]++)] =
        static_cast<int32_t>(slot);
  }
  return result;
}

}  // namespace espalier
