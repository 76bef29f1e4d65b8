// The inner loops of dense pruning arithmetic, one set for each instruction set. Operands travel as panels: kPanel
// columns wide, one row for each step of depth, [depth, kPanel] row-major and zero-padded, so that one packing serves
// as left or right operand of a product.
#pragma once

#include <cstdint>

#include "prune/training_kernels.h"

namespace espalier {

inline constexpr int64_t kPanel = 96;

template <class T>
struct PanelKernels {
  // c[i, j] += alpha · Σ_k a[k, i] · b[k, j] for 0 <= i, j < kPanel; c has `stride` elements a row. The sum over k runs
  // in ascending order with one accumulator an element.
  void (*update)(int64_t depth, const T* a, const T* b, T alpha, T* c, int64_t stride);
  // tile[i, :] -= factors[i] · row[:] for 0 <= i < count; tile is [count, kPanel], row is [kPanel].
  void (*eliminate)(T* tile, int64_t count, const T* row, const T* factors);
  // c[i, j] += Σ_k max(0, a[k, i] − b[k, j]) for 0 <= i, j < kPanel; c is [kPanel, kPanel].
  void (*excess)(int64_t depth, const T* a, const T* b, T* c);
};

struct PanelKernelSet {
  PanelKernels<float> f32;
  PanelKernels<double> f64;
  TrainingKernels training;
};

extern const PanelKernelSet kPanelKernelsScalar;
#if defined(__x86_64__)
extern const PanelKernelSet kPanelKernelsAvx2;
extern const PanelKernelSet kPanelKernelsAvx512;
#endif

// The set for the selected instruction set (cpu_features).
const PanelKernelSet& panel_kernels();

}  // namespace espalier
