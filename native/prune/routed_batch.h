// Experts that are trained together on what they give together: one batch of tokens through all of them and back.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "prune/expert_trainer.h"
#include "prune/hidden_file.h"
#include "prune/recovery_loss.h"

namespace espalier {

// Which experts the router sent each token to, and the factors on their outputs.
struct RoutedTokens {
  struct Route {
    int32_t expert;
    float gate;
  };
  std::vector<int64_t> first = {0};  // [tokens + 1]: where a token's routes begin
  std::vector<Route> routes;

  int64_t count() const { return static_cast<int64_t>(first.size()) - 1; }
};

class RoutedBatch {
 public:
  // `input` and `goal` have a row for each token: what the experts read, and what the sum of their gated outputs should
  // be. Routes to experts outside [first, first + experts.size()) are passed over. All must outlive this.
  RoutedBatch(ThreadPool& pool, std::vector<ExpertTrainer>& experts, int32_t first, const RoutedTokens& routed,
              const HiddenFile& input, const HiddenFile& goal, int64_t hidden)
      : pool_(pool), experts_(experts), first_(first), routed_(routed), input_(input), goal_(goal), hidden_(hidden) {}

  // Packs the weights and runs the tokens through; then missing() is goal minus output, [tokens, hidden].
  Status forward(std::span<const int64_t> tokens);
  std::span<const float> missing() const { return missing_; }

  // Of the tokens that went forward. The sum does not depend on the number of threads.
  Result<double> loss(const RecoveryLoss& loss) const;
  Status backward(const RecoveryLoss& loss);
  void step(const AdamStep& adam);
  // Adds what the batch tells of each expert's sensitivity.
  void measure(std::vector<Sensitivity>& sensitivities) const;

  // Tokens of the batch that reached expert `e`.
  int64_t rows(size_t e) const { return static_cast<int64_t>(slots_[e].size()); }

 private:
  struct Slot {
    int64_t row;  // in the batch
    float gate;
  };

  // body(expert, task) for every task < count(expert) of every expert.
  template <class Count, class Body>
  void spread(Count&& count, Body&& body) const;
  std::vector<float> gates_of(size_t expert, int64_t block) const;

  ThreadPool& pool_;
  std::vector<ExpertTrainer>& experts_;
  int32_t first_;
  const RoutedTokens& routed_;
  const HiddenFile& input_;
  const HiddenFile& goal_;
  int64_t hidden_;
  std::span<const int64_t> tokens_;
  std::vector<std::vector<Slot>> slots_;        // of each expert
  std::vector<float> x_, missing_, outputs_;    // [tokens, hidden] twice, [slots, hidden]
  std::vector<int64_t> first_slot_;             // of each expert, in outputs_
  std::vector<std::vector<int64_t>> slots_of_;  // of each row of the batch, in expert order
};

}  // namespace espalier
