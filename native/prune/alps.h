// ALPS (arXiv 2406.07831): which weights stay and what they become are found together, by ADMM on
//   min ½‖X·(W − D)ᵀ‖² over matrices D that meet the budget,
// whose penalty ρ grows until the choice no longer changes; then conjugate gradients bring what stays to the
// least-squares optimum on its support. Inputs are scaled so that H has a unit diagonal, so a weight is measured with
// its input's length.
//
// Every step needs (H + ρ·I)⁻¹ applied to all rows, 2·width² products a row. ρ changes every third step, and H + ρ·I is
// factored anew each time, ⅔·width³ products in float64: an eighth of the three steps for a matrix with as many rows as
// columns. One symmetric eigendecomposition instead would cost about 9·width³ at the speed of memory, and 4·width² a
// row and step.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/thread_pool.h"
#include "prune/mask.h"
#include "prune/scaled_hessian.h"

namespace espalier {

struct AlpsReport {
  int64_t steps = 0;   // of ADMM
  double penalty = 0;  // the last ρ
};

// Prunes `weights` [rows, site.width] in place. Unstructured: the weights of the whole matrix compete. N:M: those of a
// group. `budget` must have passed check_budget. The result is the same for any number of threads. Memory: 14 bytes a
// weight and 12·width² beside the site. kOutOfMemory.
Result<AlpsReport> prune_alps(ThreadPool& pool, const ScaledHessian& site, const Budget& budget, float* weights,
                              int64_t rows);

}  // namespace espalier
