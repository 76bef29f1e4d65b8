// Which weights stay under a budget: the choice stage of a pruning method. Scores are [rows, cols] row-major, finite
// and not negative; masks have one byte a weight, 1 = kept, 0 = zeroed. Choices are exact and, of equal scores, the
// lower column goes first; they do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"

namespace espalier {

// The budget: a fraction of the weights anywhere in a comparison group, or n of every m consecutive inputs.
struct Budget {
  double sparsity = 0;  // unstructured: the fraction that is zeroed, 0 <= sparsity < 1
  int64_t keep = 0;     // n:m: of every `group` consecutive inputs, `keep` stay
  int64_t group = 0;    // 0 for unstructured

  static Budget unstructured(double sparsity) { return {sparsity, 0, 0}; }
  static Budget n_of_m(int64_t keep, int64_t group) { return {0, keep, group}; }
  bool is_grouped() const { return group != 0; }
};

// kUsage where the budget is out of range, or `cols` inputs cannot be divided into its groups.
Status check_budget(const Budget& budget, int64_t cols);

// The value at `rank` (from 0, ascending) of values[r·stride + c], 0 <= r < rows, 0 <= c < cols, none negative or NaN.
float select_rank(ThreadPool& pool, const float* values, int64_t rows, int64_t cols, int64_t stride, int64_t rank);

// The k-th smallest value, k = floor(sparsity · rows · cols); -1, below every score, where k is 0.
float select_threshold(ThreadPool& pool, const float* values, int64_t rows, int64_t cols, int64_t stride,
                       double sparsity);

// One threshold for each block of `block` columns over all rows (block = cols: one for the matrix). Scores up to and
// including it are zeroed: floor(sparsity · size of the block), and ties.
void mask_threshold(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, int64_t block, double sparsity,
                    uint8_t* mask);

// Zeroes exactly floor(sparsity · cols) of each row.
void mask_rows(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, double sparsity, uint8_t* mask);

// Keeps exactly `keep` of every `group` consecutive columns; `group` must divide `cols`.
void mask_groups(ThreadPool& pool, const float* scores, int64_t rows, int64_t cols, int64_t keep, int64_t group,
                 uint8_t* mask);

// The same choice for one group of scores: zeroes the mask bytes of the `zeros` smallest and sets the others.
// `scratch` holds `count` floats.
void mask_smallest(const float* scores, int64_t count, int64_t zeros, float* scratch, uint8_t* mask);

// floor(sparsity · count).
int64_t pruned_count(double sparsity, int64_t count);

}  // namespace espalier
