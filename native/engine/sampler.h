// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>

namespace espalier {

// Applied in this order: repetition penalty, temperature, top-k, top-p, min-p; then a draw by the seed.
struct SamplerOptions {
  float temperature = 0;  // 0: the most likely token, ties to the lower id
  int32_t top_k = 0;      // 0: all
  float top_p = 1;        // smallest set of most likely tokens whose probabilities reach it
  float min_p = 0;        // drop tokens below min_p · (highest probability)
  float repetition_penalty =
      1;  // divides positive, multiplies negative logits of tokens in `history` (Keskar et al. 2019)
  uint64_t seed = 0;
};

// `step` numbers the draws of a sequence: the same (logits, options, history, step) give the same token on any machine
// whose logits agree. Overwrites `logits`.
int32_t sample(std::span<float> logits, const SamplerOptions& options, std::span<const int32_t> history, uint64_t step);

}  // namespace espalier
