// In which order an expert's inner channels lose least to n:m. Row i of gate and up and column i of down belong to
// channel i, and an expert computes the same in any order of them, so the order is free: one is wanted in which the
// large scores of each row of down lie in different groups.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "prune/mask.h"

namespace espalier {

// Σ over rows and groups of the `keep` largest scores of a group, the columns taken in `order` (empty: as they are).
// Scores are [rows, cols] row-major, finite and not negative.
double kept_score(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, const Budget& budget,
                  const std::vector<int32_t>& order);

// An order of the columns that keeps more; column i of the result is column order[i] of `scores`. It never keeps less
// than the order that is there, which is returned where nothing better is found.
//
// As in RIA (Zhang et al. 2024): columns are dealt into the groups by their sums of scores, forth and
// back, then those at one place of all groups are taken out and put back by the assignment that keeps most, place after
// place, until no column moves or kPermutationPasses are over. (Exchanging two columns, as Pool and Yu 2021 do, is an
// assignment of two groups.) More than kAssignedGroups groups are shared out at random, each time anew, and assigned
// within their shares: a pass costs cols · kAssignedGroups · rows additions, and assignments take cols ·
// kAssignedGroups² steps at most, linear in the width where the whole problem is cubic.
//
// kUsage where the budget is not n:m or its groups do not divide `cols`, kAborted. The same for any number of threads.
Result<std::vector<int32_t>> permute_for_groups(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols,
                                                const Budget& budget, const std::atomic<bool>* cancel);

inline constexpr int64_t kAssignedGroups = 480;
inline constexpr int kPermutationPasses = 4;

}  // namespace espalier
