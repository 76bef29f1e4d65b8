// Recovery: after pruning, the kept weights of a layer's experts are trained until the experts together give again what
// they gave before, on the inputs that the pruned model feeds them. It is the layer's part of MoE-Pruner's expert-wise
// distillation (arXiv 2410.12013, section 3.4), but on the sum of the experts that a token goes to, so that one makes
// up for what another lost.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "prune/routed_batch.h"

namespace espalier {

struct RecoverOptions {
  int epochs = 16;
  int64_t batch = 4096;         // tokens of a step
  double learning_rate = 0.02;  // of Adam, relative to the root mean square of a matrix; falls to 0 as a cosine
  bool gradual = false;         // choose the zeros anew, little by little while training from the dense weights
  uint64_t seed = 0;            // of the order of the tokens
};

struct RecoverReport {
  double before = 0;  // mean loss of a held-out token with the experts as they were given
  double after = 0;
  int epoch = 0;  // the epoch whose weights were taken, from 1; 0: the experts were left as they were given
};

// An expert's matrices, row-major: gate and up [width, hidden], down [hidden, width].
using ExpertFloats = std::array<std::vector<float>, kRoles.size()>;

// Ready to be trained; `dense` gives the size of a step in each matrix.
ExpertTrainer trainer_of(const ExpertFloats& weights, const ExpertFloats& dense, int64_t hidden);

struct RecoverRequest {
  const RoutedTokens* routed = nullptr;
  int32_t first_expert = 0;           // of those in `routed` that are trained
  const HiddenFile* input = nullptr;  // a row for each token: what experts read
  const HiddenFile* goal = nullptr;   // what the gated outputs of the trained experts should sum up to
  int64_t hidden = 0;
  const RecoveryLoss* loss = nullptr;
  int64_t held_out = 0;  // tokens from the end that are not trained on: they decide which epoch is taken
};

// `dense` and `pruned` are the same experts before and after pruning; `pruned` becomes what was learned. An expert
// keeps its number of zeros, and where `gradual` is false or an epoch has too few steps for it, the zeros themselves.
// On the held-out tokens the result is never worse than what was given. `progress` counts tokens of all epochs. Same
// bytes for any number of threads. kAborted, kOutOfMemory, kIo.
Result<RecoverReport> recover_experts(ThreadPool& pool, const RecoverRequest& request,
                                      const std::vector<ExpertFloats>& dense, std::vector<ExpertFloats>& pruned,
                                      const RecoverOptions& options,
                                      const std::function<void(int64_t done, int64_t total)>& progress,
                                      const std::atomic<bool>* cancel);

}  // namespace espalier
