#include "prune/scaled_hessian.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "prune/linalg.h"

namespace espalier {
namespace {

Status no_memory(const char* what, int64_t width) {
  return Status(Code::kOutOfMemory, "no memory for " + std::string(what) + " of " + std::to_string(width) +
                                        " input columns: free memory, or choose a method without weight update");
}

}  // namespace

void ScaledHessian::multiply(const float* in, float* out) const {
  const PanelKernels<float>& kernels = panel_kernels().f32;
  std::fill(out, out + tile_size(width), 0.0f);
  for (int64_t p = 0; p < panel_count(width); ++p) {
    kernels.update(width, panels.data() + p * width * kPanel, in, 1.0f, out + p * kPanel * kPanel, kPanel);
  }
}

void ScaledHessian::load_tile(const float* weights, int64_t count, float* tile) const {
  std::fill(tile + width * kPanel, tile + tile_size(width), 0.0f);
  pack_transposed(weights, width, count, width, tile);
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t r = 0; r < kPanel; ++r) tile[j * kPanel + r] *= lengths[static_cast<size_t>(j)];
  }
}

void ScaledHessian::store_tile(float* tile, int64_t count, float* weights) const {
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t r = 0; r < kPanel; ++r) tile[j * kPanel + r] /= lengths[static_cast<size_t>(j)];
  }
  unpack_transposed(tile, count, width, weights, width);
}

Result<ScaledHessian> scale_hessian(ThreadPool& pool, const Hessian& hessian, double damping) {
  if (!hessian.scale().usable) {
    return Status(Code::kNonFinite,
                  "the calibration inputs have no finite Gram matrix: the model's activations overflow");
  }
  const int64_t n = hessian.width();
  ScaledHessian scaled;
  scaled.width = n;
  scaled.damping = damping;
  scaled.panels.reset(static_cast<size_t>(panel_count(n) * n * kPanel));
  if (scaled.panels.size() == 0) return no_memory("the Gram matrix", n);
  std::vector<double> lengths(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) {
    lengths[static_cast<size_t>(j)] = std::sqrt(hessian.at(j, j) + damping);
    scaled.lengths.push_back(static_cast<float>(lengths[static_cast<size_t>(j)]));
  }
  pool.parallel_for(panel_count(n), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* panel = scaled.panels.data() + p * n * kPanel;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = p * kPanel; j < p * kPanel + panel_width(n, p); ++j) {
          const double value = hessian.at(std::min(i, j), std::max(i, j)) + (i == j ? damping : 0);
          panel[i * kPanel + j % kPanel] =
              static_cast<float>(value / (lengths[static_cast<size_t>(i)] * lengths[static_cast<size_t>(j)]));
        }
      }
    }
  });
  return scaled;
}

Status ShiftedInverse::allocate(int64_t width) {
  width_ = width;
  work_.reset(static_cast<size_t>(width * width));
  rows_.reset(static_cast<size_t>(row_offset(panel_count(width))));
  columns_.reset(static_cast<size_t>(column_offset(panel_count(width))));
  if (work_.size() == 0 || rows_.size() == 0 || columns_.size() == 0) return no_memory("the inverse", width);
  return Status::ok();
}

Status ShiftedInverse::factor(ThreadPool& pool, const ScaledHessian& hessian, double penalty) {
  const int64_t n = width_;
  double* work = work_.data();
  pool.parallel_for(n, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = i; j < n; ++j) work[i * n + j] = static_cast<double>(hessian.at(i, j));
      work[i * n + i] += penalty;
    }
  });
  const Result<int64_t> factored = inverse_upper_factor(pool, work, n);
  if (!factored.is_ok()) return factored.status();
  if (factored.value() < n) {
    return Status(Code::kNonFinite,
                  "the Gram matrix of the calibration inputs is not positive definite: the model's activations "
                  "overflow");
  }
  pool.parallel_for(panel_count(n), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) pack(p);
  });
  return Status::ok();
}

void ShiftedInverse::apply(const float* in, float* middle, float* out) const {
  const PanelKernels<float>& kernels = panel_kernels().f32;
  std::fill(middle, middle + tile_size(width_), 0.0f);
  std::fill(out, out + tile_size(width_), 0.0f);
  for (int64_t p = 0; p < panel_count(width_); ++p) {
    const int64_t first = p * kPanel;
    kernels.update(width_ - first, rows_.data() + row_offset(p), in + first * kPanel, 1.0f, middle + first * kPanel,
                   kPanel);
  }
  for (int64_t p = 0; p < panel_count(width_); ++p) {
    kernels.update(column_depth(p), columns_.data() + column_offset(p), middle, 1.0f, out + p * kPanel * kPanel,
                   kPanel);
  }
}

void ShiftedInverse::pack(int64_t p) {
  const int64_t n = width_;
  const int64_t first = p * kPanel;
  const int64_t width = panel_width(n, p);
  const auto upper = [&](int64_t i, int64_t j) { return static_cast<float>(work_[static_cast<size_t>(i * n + j)]); };
  float* by_row = rows_.data() + row_offset(p);
  for (int64_t k = first; k < n; ++k) {
    for (int64_t i = 0; i < width; ++i) by_row[(k - first) * kPanel + i] = first + i <= k ? upper(first + i, k) : 0.0f;
  }
  float* by_column = columns_.data() + column_offset(p);
  for (int64_t i = 0; i < column_depth(p); ++i) {
    for (int64_t j = 0; j < width; ++j) by_column[i * kPanel + j] = i <= first + j ? upper(i, first + j) : 0.0f;
  }
}

}  // namespace espalier
