// The survey of a layer's experts on the CPU.
#pragma once

#include "prune/layer_runner.h"
#include "prune/survey_sums.h"

namespace espalier {

// Observes one run of the layer. The result depends on the tokens, their order and (losses) how they are cut into
// batches, not on threads.
class ExpertSurvey final : public Observer, public LayerSurvey {
 public:
  // As SurveySums has it.
  static Result<std::unique_ptr<LayerSurvey>> create(const Compute& compute, std::vector<FeedForwardPart>& parts,
                                                     const SurveyOptions& options);

  void on_routing(const RoutingBatch& batch) override;
  void on_expert(const ExpertBatch& batch) override;
  Result<std::vector<PartSurvey>> finish() override { return sums_.finish(); }

 private:
  ExpertSurvey(const Compute& compute, std::vector<FeedForwardPart>& parts, const SurveyOptions& options,
               SurveySums sums)
      : compute_(compute), parts_(parts), options_(options), sums_(std::move(sums)) {}
  void add_outputs(const RoutingBatch& batch);
  void add_losses(const RoutingBatch& batch, KeptSetLosses& losses);
  // out = the output of one expert for rows of x.
  void run_expert(Mlp& mlp, const float* x, int64_t rows, int64_t hidden, float* out);

  Compute compute_;
  std::vector<FeedForwardPart>& parts_;
  SurveyOptions options_;
  SurveySums sums_;
  std::vector<double> scratch_;
  AlignedBuffer<float> activations_, outputs_;
};

}  // namespace espalier
