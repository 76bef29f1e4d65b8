// The inverse of a Cholesky factor in float64 on the device: what SparseGPT eliminates with, as of the CPU's
// prune/linalg.h.
#pragma once

#include <cstdint>

#include "core/status.h"

struct CUstream_st;

namespace espalier::cuda {

// A width made whole blocks of.
constexpr int64_t blocked_width(int64_t width) { return (width + 127) / 128 * 128; }

// H of prune/hessian.h from Gram matrices, with its columns in reverse order, n = blocked_width(width) on each side:
//   out[i][j] = H(width − 1 − i, width − 1 − j) + damping · δ_ij for j ≤ i < width, and the identity behind that.
struct HessianTask {
  const float* gram = nullptr;  // [?][stride], the upper triangle of the first `width` columns
  int64_t stride = 0;
  const float* pooled = nullptr;  // [width][width] likewise, or null
  int64_t width = 0;
  double scale = 1;         // of gram
  double pooled_scale = 0;  // of pooled
  double diagonal = 1;      // of gram's diagonal, beside its scale
  double damping = 0;
  double* out = nullptr;  // [n][n], zeros above the diagonal
};
Status fill_hessian(const HessianTask& task, CUstream_st* stream);

// Doubles of work space.
constexpr int64_t inverse_work(int64_t n) { return 2 * 128 * n + 128 * 128; }

// In place: the lower triangle of the symmetric `a` [n][n] becomes L⁻¹, where A = L·Lᵀ; n is a multiple of 128. What is
// above the diagonal is unspecified. Where A is not positive definite, or not finite, *failed (zero before) becomes 1
// and `a` is unspecified. 2n³/3 operations. Pointers are to device memory; an error is that of a launch.
Status invert_cholesky(double* a, int64_t n, double* work, int32_t* failed, CUstream_st* stream);

}  // namespace espalier::cuda
