#include "prune/linalg.h"

#include <cmath>
#include <string>

#include "core/aligned.h"
#include "prune/panels.h"

namespace espalier {
namespace {

using Kernels = PanelKernels<double>;

constexpr int64_t kTile = kPanel * kPanel;

Status no_memory(int64_t n) {
  return Status(Code::kOutOfMemory, "no memory for the work space of a " + std::to_string(n) + " x " +
                                        std::to_string(n) + " factorisation: free memory or use fewer threads");
}

// Factors one block given as its transpose in `upper` [kPanel, kPanel]: upper[q, i] = A[i, q]; on return it is Lᵀ.
// Returns n, or the first pivot that is not positive.
int64_t factor_block(const Kernels& kernels, double* upper, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    double* row = upper + j * kPanel;
    const double pivot = row[j];
    if (!(pivot > 0) || !std::isfinite(pivot)) return j;
    const double scale = 1.0 / std::sqrt(pivot);
    for (int64_t i = j; i < n; ++i) row[i] *= scale;
    kernels.eliminate(row + kPanel, n - j - 1, row, row + j + 1);
  }
  return n;
}

// tile := L⁻¹ · tile, where `upper` is Lᵀ of one block and tile is [n, kPanel].
void solve_block(const Kernels& kernels, const double* upper, int64_t n, double* tile) {
  for (int64_t r = 0; r < n; ++r) {
    double* row = tile + r * kPanel;
    const double scale = 1.0 / upper[r * kPanel + r];
    for (int64_t j = 0; j < kPanel; ++j) row[j] *= scale;
    kernels.eliminate(row + kPanel, n - r - 1, row, upper + r * kPanel + r + 1);
  }
}

void reverse(ThreadPool& pool, double* values, int64_t count) {
  pool.parallel_for(count / 2, int64_t{1} << 18, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::swap(values[i], values[count - 1 - i]);
  });
}

}  // namespace

Result<int64_t> cholesky_lower(ThreadPool& pool, double* a, int64_t n) {
  const Kernels& kernels = panel_kernels().f64;
  const int64_t blocks = panel_count(n);
  AlignedBuffer<double> work(static_cast<size_t>((blocks + 1) * kTile));
  if (work.size() == 0) return no_memory(n);
  double* upper = work.data();
  double* panels = upper + kTile;
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t width = panel_width(n, k);
    const int64_t start = k * kPanel;
    double* diagonal = a + start * n + start;
    pack_transposed(diagonal, n, width, width, upper);
    const int64_t factored = factor_block(kernels, upper, width);
    if (factored < width) return start + factored;
    unpack_transposed(upper, width, width, diagonal, n);

    const int64_t below = blocks - k - 1;
    pool.parallel_for(below, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t block = k + 1 + t;
        double* source = a + block * kPanel * n + start;
        double* panel = panels + t * kTile;
        pack_transposed(source, n, panel_width(n, block), kPanel, panel);
        solve_block(kernels, upper, kPanel, panel);
        unpack_transposed(panel, panel_width(n, block), kPanel, source, n);
      }
    });
    pool.parallel_for(triangle_index(below, 0), 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const TriangleTile tile = triangle_tile(t);
        const int64_t i = k + 1 + tile.row;
        const int64_t j = k + 1 + tile.column;
        update_tile(kernels, kPanel, panels + tile.row * kTile, panels + tile.column * kTile, -1.0,
                    a + i * kPanel * n + j * kPanel, n, panel_width(n, i), panel_width(n, j));
      }
    });
  }
  return n;
}

Status invert_lower(ThreadPool& pool, double* l, int64_t n) {
  const Kernels& kernels = panel_kernels().f64;
  const int64_t blocks = panel_count(n);
  AlignedBuffer<double> work(static_cast<size_t>((2 * blocks + 1) * kTile));
  if (work.size() == 0) return no_memory(n);
  double* upper = work.data();
  double* finished = upper + kTile;            // row block k of the inverse, by columns
  double* column = finished + blocks * kTile;  // column block k of L, by rows
  // Row block i holds L[i, j] for j >= k and -Σ_{j<k} L[i, j] · inverse[j, :] to the left, until its own turn.
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t width = panel_width(n, k);
    const int64_t start = k * kPanel;
    pack_transposed(l + start * n + start, n, width, width, upper);
    pool.parallel_for(k + 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        const int64_t columns = panel_width(n, j);
        double* rows = l + start * n + j * kPanel;
        double* tile = finished + j * kTile;
        for (int64_t r = 0; r < width; ++r) {
          double* row = tile + r * kPanel;
          if (j < k) {
            std::copy(rows + r * n, rows + r * n + kPanel, row);
          } else {
            std::fill(row, row + kPanel, 0.0);
            row[r] = 1.0;
          }
        }
        solve_block(kernels, upper, width, tile);
        for (int64_t r = 0; r < width; ++r) std::copy(tile + r * kPanel, tile + r * kPanel + columns, rows + r * n);
      }
    });
    const int64_t below = blocks - k - 1;
    pool.parallel_for(below, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t rows = panel_width(n, k + 1 + t);
        double* block = l + (k + 1 + t) * kPanel * n + start;
        pack_transposed(block, n, rows, kPanel, column + t * kTile);
        for (int64_t r = 0; r < rows; ++r) std::fill(block + r * n, block + r * n + kPanel, 0.0);
      }
    });
    pool.parallel_for(below * (k + 1), 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t i = k + 1 + t / (k + 1);
        const int64_t j = t % (k + 1);
        update_tile(kernels, kPanel, column + (i - k - 1) * kTile, finished + j * kTile, -1.0,
                    l + i * kPanel * n + j * kPanel, n, panel_width(n, i), kPanel);
      }
    });
  }
  return Status::ok();
}

Result<int64_t> inverse_upper_factor(ThreadPool& pool, double* a, int64_t n) {
  // With J the reversal of the order, J·A·J = L·Lᵀ gives A = (J·L·J)·(J·L·J)ᵀ, whose first factor V is upper
  // triangular; A⁻¹ = V⁻ᵀ·V⁻¹, so U = V⁻¹ = J·L⁻¹·J. Reversing a contiguous array is J·(·)·J.
  reverse(pool, a, n * n);
  Result<int64_t> factored = cholesky_lower(pool, a, n);
  if (!factored.is_ok() || factored.value() < n) return factored;
  ESPALIER_TRY(invert_lower(pool, a, n));
  reverse(pool, a, n * n);
  return n;
}

}  // namespace espalier
