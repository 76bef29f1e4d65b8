// The best values for the weights that a mask keeps.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "core/thread_pool.h"
#include "prune/scaled_hessian.h"

namespace espalier {

// Brings the weights of [rows, hessian.width] that are not zero towards argmin ‖X·(target − weights)ᵀ‖², row by row, by
// `steps` steps of conjugate gradients from where they are. Zeros stay. 5 · 4 · kPanel · width bytes a thread. The
// result is the same for any number of threads. kOutOfMemory.
Status refit(ThreadPool& pool, const ScaledHessian& hessian, int64_t steps, const float* target, float* weights,
             int64_t rows);

}  // namespace espalier
