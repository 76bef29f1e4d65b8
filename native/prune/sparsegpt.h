// SparseGPT (arXiv 2301.00774): columns are pruned from left to right, and what each one loses is made up for by the
// columns to its right, in the least-squares sense of the calibration inputs. The mask is chosen on the way, from
// weights that already carry the corrections. What is kept can be rounded in the same walk, its errors compensated with
// the others: pruning and GPTQ (arXiv 2210.17323) in one pass.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/thread_pool.h"
#include "prune/inverse_factor.h"
#include "prune/mask.h"
#include "sparse/format.h"

namespace espalier {

struct SparseGptPlan {
  Budget budget;
  // Weights that are zero stay so and no others go, whatever the budget: with `values`, GPTQ on a pruned matrix, or on
  // a dense one.
  bool keep_zeros = false;
  // kInt8 or kInt4: kept weights are rounded to the grids of prune/value_grid.h. The scales of a block are chosen from
  // its weights as they would be without rounding. kF32: not rounded.
  Values values = Values::kF32;
  int64_t block = 128;  // columns of a block, made a multiple of the groups of budget and values
};

// Prunes `weights` [rows, factor.width] in place, block by block. Unstructured: in each block the weights whose
// w² / U_jj² is up to and including the value at rank floor(sparsity · rows · block) are zeroed. N:M: at every M-th
// column each row chooses among the next M. `plan.budget` must have passed check_budget. The result is the same for any
// number of threads. kOutOfMemory.
Status prune_sparsegpt(ThreadPool& pool, const InverseFactor& factor, const SparseGptPlan& plan, float* weights,
                       int64_t rows);

// Columns of a block of the walk: whole groups of the budget and of the values.
int64_t block_width(const SparseGptPlan& plan);

// The walk where the factor of a site is not in memory of the CPU.
class SparseGptWalk {
 public:
  virtual ~SparseGptWalk() = default;
  // As prune_sparsegpt, and the errors of the device.
  virtual Status prune(const SparseGptPlan& plan, float* weights, int64_t rows) = 0;
};

}  // namespace espalier
