// H with its columns scaled to a unit diagonal, and (H + ρ·I)⁻¹, applied to many rows at once.
//
// Matrices that they are applied to travel as tiles: kPanel rows, transposed to [padded width, kPanel], zeros behind
// the width.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "prune/hessian.h"
#include "prune/panels.h"

namespace espalier {

// Elements of a tile.
inline int64_t tile_size(int64_t width) { return panel_count(width) * kPanel * kPanel; }

// What all matrices that read a site share. 4·width² bytes.
struct ScaledHessian {
  int64_t width = 0;
  AlignedBuffer<float> panels;  // panel p: columns [p·kPanel, +kPanel) of the scaled matrix, [width, kPanel]
  std::vector<float> lengths;   // √(H_jj + damping): a scaled weight is the weight times its column's length
  double damping = 0;           // as a fraction of the mean diagonal

  // i and j in any order.
  float at(int64_t i, int64_t j) const {
    return panels[static_cast<size_t>((j / kPanel * width + i) * kPanel + j % kPanel)];
  }
  // out = H · in for one tile.
  void multiply(const float* in, float* out) const;
  // A tile of the `count` rows at `weights` [count, width], scaled; and back.
  void load_tile(const float* weights, int64_t count, float* tile) const;
  void store_tile(float* tile, int64_t count, float* weights) const;
};

// kNonFinite where the inputs were not finite, kOutOfMemory.
Result<ScaledHessian> scale_hessian(ThreadPool& pool, const Hessian& hessian, double damping);

// (H + ρ·I)⁻¹ = Uᵀ·U, with U in float32 once in each order that applying it needs. 12·width² bytes.
class ShiftedInverse {
 public:
  Status allocate(int64_t width);
  // kNonFinite where H + ρ·I is not positive definite.
  Status factor(ThreadPool& pool, const ScaledHessian& hessian, double penalty);
  // out = (H + ρ·I)⁻¹ · in for one tile; `middle` is another.
  void apply(const float* in, float* middle, float* out) const;

 private:
  int64_t column_depth(int64_t p) const { return std::min(width_, (p + 1) * kPanel); }
  int64_t column_offset(int64_t p) const { return p * (p + 1) / 2 * kPanel * kPanel; }
  int64_t row_offset(int64_t p) const { return (p * width_ - p * (p - 1) / 2 * kPanel) * kPanel; }
  void pack(int64_t p);

  int64_t width_ = 0;
  AlignedBuffer<double> work_;
  AlignedBuffer<float> rows_;     // panel p: U[p·kPanel + i, k] at [k − p·kPanel, i], k >= p·kPanel
  AlignedBuffer<float> columns_;  // panel p: U[i, p·kPanel + j] at [i, j], i < (p + 1)·kPanel
};

}  // namespace espalier
