// What recovery knows of a layer: what its experts read, where its tokens went, and sums of experts' outputs. All that
// has a row for each token lies in temporary files, for it is as large as the calibration set's hidden states.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "engine/feed_forward.h"
#include "prune/recover.h"

namespace espalier {

class CapturedLayer final : public Observer {
 public:
  // Files lie at `scratch` with endings of their own. `first_expert`: for each part of the layer, how many experts the
  // parts before it have.
  static Result<std::unique_ptr<CapturedLayer>> create(const std::string& scratch, int64_t hidden,
                                                       std::vector<int32_t> first_expert);

  void on_expert(const ExpertBatch& batch) override;
  // After the layer ran a batch: its rows from `first` on came out as `states`.
  Status end_batch(int64_t first, int64_t rows, const float* states);
  // Experts get other numbers: `place` of the old one.
  void renumber(const std::vector<int32_t>& place);

  // With output() complete: adds to goal() `share` of what the dense model's output, rows of `dense` from `first` on,
  // has more than it, and replaces output() by that.
  Status aim_at(const HiddenFile& dense, int64_t first, float share);
  // Token rows of `sums` += sign · Σ g·E(x) over experts, the first of which has the number `first`. Returns the mean
  // of the rows' ‖·‖² afterwards. kAborted.
  Result<double> add_outputs(ThreadPool& pool, const std::vector<ExpertFloats>& experts, int32_t first, float sign,
                             HiddenFile& sums, const std::atomic<bool>* cancel) const;

  const RoutedTokens& routed() const { return routed_; }
  // Whether all inputs and outputs of experts were.
  bool finite() const { return finite_; }
  const HiddenFile& inputs() const { return inputs_; }
  // Zeros, for what the trained experts should give.
  HiddenFile& goal() { return goal_; }
  // The layer's output without its routed experts'.
  HiddenFile& output() { return output_; }

 private:
  CapturedLayer(int64_t hidden, std::vector<int32_t> first_expert, HiddenFile inputs, HiddenFile goal,
                HiddenFile output)
      : hidden_(hidden),
        first_expert_(std::move(first_expert)),
        inputs_(std::move(inputs)),
        goal_(std::move(goal)),
        output_(std::move(output)) {}

  int64_t hidden_;
  std::vector<int32_t> first_expert_;
  HiddenFile inputs_, goal_, output_;
  RoutedTokens routed_;
  bool finite_ = true;
  // Of the open batch:
  std::vector<std::vector<RoutedTokens::Route>> routes_;
  std::vector<float> input_rows_, output_rows_;
};

}  // namespace espalier
