// How much a layer's routed output changes when only some of its experts are kept, for every set of a size at once
// (NAEE: Lu et al. 2024, arXiv 2402.14800, section 3.2).
//
// For a token, Z = Σ g_e·f_e over the experts that its router chooses among all, Z' the same among the kept ones
// (scored, chosen and renormalised as the pruned router will). With d = g − g' and the Gram matrix G of the token's
// expert outputs, ‖Z − Z'‖² = dᵀ G d: outputs are multiplied once a token, and a set costs a choice and a few sums.
#pragma once

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "moe/router.h"

namespace espalier {

// Sets that enumeration is for: 30 minutes of it for Mixtral-8x7B on the paper's machine had 70.
inline constexpr int64_t kMostKeptSets = 50'000;

// C(n, r), or `most` + 1 where it is more than `most`.
int64_t count_sets(int64_t n, int64_t r, int64_t most);

// grams [tokens][experts][experts] of outputs [experts][tokens][hidden], in float64.
void output_grams(ThreadPool& pool, const float* outputs, int64_t experts, int64_t tokens, int64_t hidden,
                  double* grams);

class KeptSetLosses {
 public:
  // kUsage unless 1 ≤ keep < experts and C(experts, keep) ≤ kMostKeptSets.
  static Result<KeptSetLosses> create(const RouterOptions& routing, int64_t experts, int64_t keep);

  // Adds tokens to the open batch: raw logits [tokens][experts], and the Gram matrices of their experts' outputs.
  void add(ThreadPool& pool, const float* logits, const double* grams, int64_t tokens);
  // Closes it: adds ‖Z − Z'‖_F of its tokens to the losses.
  void end_batch();

  // [sets], in lexicographic order of the kept experts: {0, 1}, {0, 2}, …
  const std::vector<double>& losses() const { return losses_; }

 private:
  KeptSetLosses() = default;

  RouterOptions routing_;
  int64_t experts_ = 0;
  int64_t keep_ = 0;
  std::vector<int32_t> sets_;   // [sets][keep]
  std::vector<double> losses_;  // [sets]
  std::vector<double> open_;    // [sets]: Σ ‖Z − Z'‖² of the open batch
};

}  // namespace espalier
