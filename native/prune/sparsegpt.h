// SparseGPT (arXiv 2301.00774): columns are pruned from left to right, and what each one loses is made up for by the
// columns to its right, in the least-squares sense of the calibration inputs. The mask is chosen on the way, from
// weights that already carry the corrections.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/thread_pool.h"
#include "prune/inverse_factor.h"
#include "prune/mask.h"

namespace espalier {

// Prunes `weights` [rows, factor.width] in place, `block` columns at a time. Unstructured: in each block the weights
// whose w² / U_jj² is up to and including the value at rank floor(sparsity · rows · block) are zeroed. N:M: at every
// M-th column each row chooses among the next M; blocks are shortened (or widened to M) so that no group straddles two.
// `budget` must have passed check_budget. The result is the same for any number of threads. kOutOfMemory.
Status prune_sparsegpt(ThreadPool& pool, const InverseFactor& factor, const Budget& budget, int64_t block,
                       float* weights, int64_t rows);

}  // namespace espalier
