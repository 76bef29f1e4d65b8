// How much each weight matters, by itself: the score stage of a pruning method. Matrices are [rows, cols] row-major,
// one row for each output; a higher score means a weight worth keeping.
#pragma once

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"

namespace espalier {

// |W_ij|.
void score_magnitude(ThreadPool& pool, const float* weights, int64_t rows, int64_t cols, float* scores);

// |W_ij| · norms[j], with norms[j] = ‖X_j‖₂ of input column j over the calibration tokens (Wanda, arXiv 2306.11695,
// Eq. 1); with norms of router-weighted inputs it is MoE-Pruner's |W_ij| · ‖X_j · Gate‖₂ (arXiv 2410.12013, Eq. 9).
void score_activation(ThreadPool& pool, const float* weights, int64_t rows, int64_t cols, const float* norms,
                      float* scores);

// (|W_ij| / Σ_k|W_kj| + |W_ij| / Σ_k|W_ik|) · norms[j]^power (RIA, Zhang et al., ICLR 2024; there the power is 1/2):
// how large a weight is among those of its input and of its output, so that no row or column goes as a whole. Sums are
// float64.
void score_relative(ThreadPool& pool, const float* weights, int64_t rows, int64_t cols, const float* norms,
                    double power, float* scores);
// norms[j]^power, as they are there.
std::vector<double> relative_lengths(const float* norms, int64_t cols, double power);

}  // namespace espalier
