// Which experts a token goes to, and with what weight.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"
#include "kernels/cpu/kernels.h"

namespace espalier {

enum class Scoring : uint8_t { kSoftmax, kSigmoid };

// Names and defaults are those of transformers' configurations, whose fields are named behind each.
struct RouterOptions {
  int top_k = 1;                        // num_experts_per_tok
  bool renormalise = false;             // norm_topk_prob: divide the chosen scores by their sum + 1e-20
  Scoring scoring = Scoring::kSoftmax;  // scoring_func
  std::vector<float> correction_bias;   // e_score_correction_bias: [rows] added for the choice only, or empty
  int n_group = 1;                      // router rows in groups of equal size ...
  int topk_group = 1;                   // ... of which the best so many may be chosen from
  float routed_scaling_factor = 1;      // multiplies the gates, last
  // [top_k − 1], or empty: from the first of a token's second, third, … experts on whose gate is below so much of the
  // first's, they are left out, and the gates of the others are scaled to the same sum (Lu et al. 2024, arXiv
  // 2402.14800, section 3.3, for two).
  std::vector<float> skip_below;
};

// kUsage where the options do not fit so many router rows.
Status check_router(const RouterOptions& options, int64_t rows);

// Scores each row of `logits` [tokens][rows] (overwritten) and takes its k largest of score + bias, highest first, ties
// to the lower index; a gate is the score without the bias. With groups, only rows of the topk_group best groups are
// chosen from, a group being as good as the sum of its two largest score + bias (DeepSeek-V3, arXiv 2412.19437, section
// 2.1.2). Logits of −∞ score 0. NaN is chosen last; its gate is NaN. Always k different rows. The options must pass
// check_router. Writes router rows to `chosen` and gates to `gates`, both [tokens][top_k]; where experts are left out,
// −1 and 0 behind the others.
void route(const CpuKernels& kernels, const RouterOptions& options, float* logits, int64_t tokens, int64_t rows,
           int32_t* chosen, float* gates);

// The (token, expert) pairs of a batch, in slots ordered by expert and, within an expert, by token.
struct Dispatch {
  std::vector<int64_t> first_slot;  // [experts + 1]
  std::vector<int32_t> token;       // [slots]
  std::vector<float> gate;          // [slots]
  std::vector<int32_t> slots_of;    // [tokens][top_k]: slots of a token, in expert order, then −1

  int64_t slots() const { return static_cast<int64_t>(token.size()); }
  int64_t count(int64_t expert) const {
    return first_slot[static_cast<size_t>(expert) + 1] - first_slot[static_cast<size_t>(expert)];
  }
};

// Groups what `route` chose; `expert_of_row` maps router rows to experts.
Dispatch dispatch(const int32_t* chosen, const float* gates, int64_t tokens, int top_k,
                  const std::vector<int32_t>& expert_of_row, int64_t experts);

}  // namespace espalier
