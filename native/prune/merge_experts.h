// One expert in place of several.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"

namespace espalier {

// down(silu(gate x) ⊙ up x): gate and up are [width, hidden], down is [hidden, width].
struct ExpertValues {
  int64_t width = 0;
  int64_t hidden = 0;
  std::vector<float> gate, up, down;
};

struct ExpertMember {
  int32_t expert = 0;
  float weight = 0;
};

// The order of the inner channels of `other` in which they match those of `reference` best: channel i of the result is
// channel p[i] of `other`, with the largest sum of the products of matched rows of gate and up and columns of down
// (weight matching; Ainsworth et al. 2023, arXiv 2209.04836; M-SMoE, arXiv 2310.01334, section 3.2). An expert computes
// the same in any order. Takes width² · hidden products, and the quadratic time of good_assignment.
Result<std::vector<int32_t>> match_channels(ThreadPool& pool, const ExpertValues& reference, const ExpertValues& other,
                                            const std::atomic<bool>* cancel);

// Σ weight · values in float32, in the order of the members, with `align` each one's channels matched to the first's.
// `load` reads an expert; two are in memory at a time beside the sum. kMismatch where members differ in width.
Result<ExpertValues> merge_experts(ThreadPool& pool, const std::vector<ExpertMember>& members, bool align,
                                   const std::function<Result<ExpertValues>(int32_t)>& load,
                                   const std::atomic<bool>* cancel);

}  // namespace espalier
