// Dense float64 factorisations for weight updates: blocked, in place, threaded. Matrices are [n, n] row-major and
// contiguous. Results are the same bytes for any number of threads.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/thread_pool.h"

namespace espalier {

// Replaces the lower triangle of the symmetric `a` by L, where A = L·Lᵀ; only that triangle is read, and the other one
// is unspecified afterwards. Returns n, or the index of the first pivot that is not positive (A is then not positive
// definite, or not finite, and `a` is unspecified). n³/3 operations.
Result<int64_t> cholesky_lower(ThreadPool& pool, double* a, int64_t n);

// Replaces the lower triangular `l` (nonzero diagonal) by its inverse; the triangle above the diagonal is not read, and
// is unspecified afterwards. n³/3 operations.
Status invert_lower(ThreadPool& pool, double* l, int64_t n);

// Replaces the upper triangle of the symmetric `a` by U, upper triangular with a positive diagonal, where A⁻¹ = Uᵀ·U:
// the factor that SparseGPT eliminates with. Only that triangle is read, and the other one is unspecified afterwards.
// Returns n, or the number of trailing columns that could be factored when A is not positive definite.
Result<int64_t> inverse_upper_factor(ThreadPool& pool, double* a, int64_t n);

}  // namespace espalier
