// The assignment problem.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "core/status.h"

namespace espalier {

// A permutation p of 0 … n − 1 with the largest Σ gain[i·n + p[i]], found by shortest augmenting paths (Jonker and
// Volgenant 1987) in O(n³) time. kAborted when `cancel` (may be null) turned true; the gains must be finite.
Result<std::vector<int32_t>> best_assignment(const std::vector<float>& gain, int64_t n,
                                             const std::atomic<bool>* cancel);

}  // namespace espalier
