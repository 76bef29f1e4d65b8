#include "moe/router.h"

namespace espalier {

void route(const CpuKernels& kernels, const RouterOptions& options, float* logits, int64_t tokens, int64_t rows,
           int32_t* chosen, float* gates) {
  for (int64_t t = 0; t < tokens; ++t) {
    float* probability = logits + t * rows;
    int32_t* ids = chosen + t * options.top_k;
    float* weights = gates + t * options.top_k;
    kernels.softmax(probability, rows);
    float total = 0;
    for (int k = 0; k < options.top_k; ++k) {
      int64_t best = 0;
      for (int64_t r = 1; r < rows; ++r) {
        if (probability[r] > probability[best]) best = r;
      }
      ids[k] = static_cast<int32_t>(best);
      weights[k] = probability[best];
      total += probability[best];
      probability[best] = -1;  // below every probability
    }
    if (options.renormalise) {
      for (int k = 0; k < options.top_k; ++k) weights[k] /= total;
    }
  }
}

Dispatch dispatch(const int32_t* chosen, const float* gates, int64_t tokens, int top_k,
                  const std::vector<int32_t>& expert_of_row, int64_t experts) {
  Dispatch result;
  const int64_t slots = tokens * top_k;
  const auto expert_at = [&](int64_t i) { return static_cast<size_t>(expert_of_row[static_cast<size_t>(chosen[i])]); };
  result.first_slot.assign(static_cast<size_t>(experts) + 1, 0);
  for (int64_t i = 0; i < slots; ++i) ++result.first_slot[expert_at(i) + 1];
  for (size_t e = 0; e < static_cast<size_t>(experts); ++e) result.first_slot[e + 1] += result.first_slot[e];

  result.token.resize(static_cast<size_t>(slots));
  result.gate.resize(static_cast<size_t>(slots));
  std::vector<int64_t> next(result.first_slot.begin(), result.first_slot.end() - 1);
  for (int64_t i = 0; i < slots; ++i) {
    const auto slot = static_cast<size_t>(next[expert_at(i)]++);
    result.token[slot] = static_cast<int32_t>(i / top_k);
    result.gate[slot] = gates[i];
  }
  result.slots_of.resize(static_cast<size_t>(slots));
  std::vector<int32_t> seen(static_cast<size_t>(tokens), 0);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const auto token = static_cast<size_t>(result.token[static_cast<size_t>(slot)]);
    result.slots_of[token * static_cast<size_t>(top_k) + static_cast<size_t>(seen[token]++)] =
        static_cast<int32_t>(slot);
  }
  return result;
}

}  // namespace espalier
