// Natural log-probabilities of single tokens under a row of logits.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/kernels.h"

namespace espalier {

// log softmax(logits), without computing all of it.
class LogProbabilities {
 public:
  LogProbabilities(const CpuKernels& kernels, std::span<const float> logits);

  double of(int32_t token) const { return static_cast<double>(logits_[static_cast<size_t>(token)]) - log_sum_; }

  // The most likely tokens, the likeliest first, ties to the lower id; both of the same length, at most that of the
  // logits.
  void top(std::span<int32_t> ids, std::span<double> values) const;

 private:
  std::span<const float> logits_;
  double log_sum_;
};

}  // namespace espalier
