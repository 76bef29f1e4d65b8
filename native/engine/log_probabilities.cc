#include "engine/log_probabilities.h"

#include <algorithm>

namespace espalier {

LogProbabilities::LogProbabilities(const CpuKernels& kernels, std::span<const float> logits)
    : logits_(logits), log_sum_(kernels.log_sum_exp(logits.data(), static_cast<int64_t>(logits.size()))) {}

void LogProbabilities::top(std::span<int32_t> ids, std::span<double> values) const {
  if (ids.empty()) return;
  const auto likelier = [this](int32_t a, int32_t b) {
    const float x = logits_[static_cast<size_t>(a)];
    const float y = logits_[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  // A heap whose front is the least likely of those kept: nearly every token is passed over after one comparison.
  for (size_t i = 0; i < logits_.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (i < ids.size()) {
      ids[i] = id;
      if (i + 1 == ids.size()) std::make_heap(ids.begin(), ids.end(), likelier);
    } else if (likelier(id, ids[0])) {
      std::pop_heap(ids.begin(), ids.end(), likelier);
      ids.back() = id;
      std::push_heap(ids.begin(), ids.end(), likelier);
    }
  }
  std::sort_heap(ids.begin(), ids.end(), likelier);
  for (size_t i = 0; i < ids.size(); ++i) values[i] = of(ids[i]);
}

}  // namespace espalier
