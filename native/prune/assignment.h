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

// The same in time that stays quadratic: nearly the largest sum. Rows bid for columns (auction; Bertsekas 1988) at most
// kBids times each, raising prices by at least 1/kBidSteps of what a row's best column is above its mean; rows that are
// left take the columns that are left; then rows in random shares of kAssignedTogether exchange theirs by
// best_assignment, kExchanges times. At most kBids · n² + kExchanges · kAssignedTogether² · n steps, and the same for
// every run. Exact for n <= kAssignedTogether.
Result<std::vector<int32_t>> good_assignment(const std::vector<float>& gain, int64_t n,
                                             const std::atomic<bool>* cancel);

inline constexpr int64_t kAssignedTogether = 512;
inline constexpr int kBids = 32;
inline constexpr int kBidSteps = 64;
inline constexpr int kExchanges = 2;

}  // namespace espalier
