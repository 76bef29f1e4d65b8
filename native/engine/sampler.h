// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>

namespace espalier {

// Applied in this order: temperature, top-k, top-p, min-p; then a draw by the seed.
struct SamplerOptions {
  float temperature = 0;  // 0: the most likely token, ties to the lower id
  int32_t top_k = 0;      // 0: all
  float top_p = 1;        // smallest set of most likely tokens whose probabilities reach it
  float min_p = 0;        // drop tokens below min_p · (highest probability)
  uint64_t seed = 0;
};

// `step` numbers the draws of a sequence: the same (logits, options, step) give the same token on any machine whose
// logits agree. A token whose logit is −∞ is drawn only where all are.
int32_t sample(std::span<const float> logits, const SamplerOptions& options, uint64_t step);

}  // namespace espalier
