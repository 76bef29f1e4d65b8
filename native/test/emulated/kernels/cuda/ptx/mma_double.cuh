#pragma once

#include "emulated/matrices.h"

namespace espalier::cuda::ptx {

inline void mma_m16n8k8(double (&c)[4], const double (&a)[4], double b0, double b1) {
  emulated::mma_m16n8k8(c, a, b0, b1);
}

}  // namespace espalier::cuda::ptx
