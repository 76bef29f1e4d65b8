// Which experts a token goes to, and with what weight.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/kernels.h"

namespace espalier {

struct RouterOptions {
  int top_k = 1;
  bool renormalise = false;  // divide the chosen probabilities by their sum
};

// Softmax over each row of `logits` [tokens][rows] (overwritten), then its top k, highest first, ties to the lower
// index. Writes router rows to `chosen` and gates to `gates`, both [tokens][top_k].
void route(const CpuKernels& kernels, const RouterOptions& options, float* logits, int64_t tokens, int64_t rows,
           int32_t* chosen, float* gates);

// The (token, expert) pairs of a batch, in slots ordered by expert and, within an expert, by token.
struct Dispatch {
  std::vector<int64_t> first_slot;  // [experts + 1]
  std::vector<int32_t> token;       // [slots]
  std::vector<float> gate;          // [slots]
  std::vector<int32_t> slots_of;    // [tokens][top_k]: slots of a token, in expert order

  int64_t slots() const { return static_cast<int64_t>(token.size()); }
  int64_t count(int64_t expert) const {
    return first_slot[static_cast<size_t>(expert) + 1] - first_slot[static_cast<size_t>(expert)];
  }
};

// Groups what `route` chose; `expert_of_row` maps router rows to experts.
Dispatch dispatch(const int32_t* chosen, const float* gates, int64_t tokens, int top_k,
                  const std::vector<int32_t>& expert_of_row, int64_t experts);

}  // namespace espalier
