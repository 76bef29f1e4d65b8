// Pruning while training (Zhu & Gupta 2017, arXiv 1710.01878): zeroes come little by little, the smallest losses first,
// and the weights that stay learn to do without them.
#pragma once

#include <cstdint>

#include "prune/expert_trainer.h"

namespace espalier {

int64_t zeros_of(const ExpertTrainer& expert);

// Zeros wanted after `progress`, 0 to 1, of the way to `last`: a cubic, from three tenths of them.
int64_t scheduled_zeros(int64_t last, double progress);

// Fixes further weights at zero until the three matrices together have `zeros`; those go that change the output least:
// w² · ∂²/∂w² of half the expected squared change (optimal brain damage, LeCun et al. 1989, with Gauss-Newton
// curvature), compared over all three.
void drop_least(ExpertTrainer& expert, const Sensitivity& sensitivity, int64_t zeros);

}  // namespace espalier
