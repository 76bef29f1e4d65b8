// The survey of a layer's experts with what is large added up in device memory: of each token's output its length comes
// to the host, of the outputs of all experts their means and each token's Gram matrix.
#pragma once

#include <vector>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/memory.h"
#include "prune/layer_runner.h"

namespace espalier::cuda {

// What experts give for some rows. Pointers to device memory but for `on_host` and `gates`.
struct ExpertOutputs {
  const GemmGroup* groups = nullptr;                // one for each expert
  const std::vector<GemmGroup>* on_host = nullptr;  // the same
  const float* gates = nullptr;                     // of each row
  const float* outputs = nullptr;                   // [rows][hidden]
};

// Sums are float64, each in an order of its own: beyond rounding there, they are those of the CPU from the same
// outputs. It must be shown the routing of a batch (on_routing), then if wants_all() all outputs, end_batch(), then the
// routed ones.
class DeviceExpertSurvey final : public LayerSurvey, public Observer {
 public:
  // `pool` and `parts` must outlive it. kUsage as SurveySums has it; kOutOfMemory.
  static Result<std::unique_ptr<LayerSurvey>> create(int device, ThreadPool& pool, cudaStream_t stream,
                                                     std::vector<FeedForwardPart>& parts, int64_t hidden,
                                                     const SurveyOptions& options);

  // batch.input is not read.
  void on_routing(const RoutingBatch& batch) override;
  // Outputs do not come this way.
  void on_expert(const ExpertBatch&) override {}

  // What experts give for the tokens that were routed to them.
  Status add_routed(int part, const ExpertOutputs& outputs);
  // Whether every expert is to be run on every token.
  bool wants_all() const { return options_.mean_outputs || options_.keep > 0; }
  // What each expert gives for the batch's next tokens.
  Status add_all(int part, const ExpertOutputs& outputs);
  void end_batch(int part);

  Result<std::vector<PartSurvey>> finish() override;

 private:
  DeviceExpertSurvey(int device, ThreadPool& pool, cudaStream_t stream, int64_t hidden, const SurveyOptions& options,
                     SurveySums sums)
      : device_(device), pool_(pool), stream_(stream), hidden_(hidden), options_(options), sums_(std::move(sums)) {}
  // Doubles of the device on the host.
  Status fetch(const DeviceMemory& from, int64_t count, std::vector<double>& to) const;

  int device_;
  ThreadPool& pool_;
  cudaStream_t stream_;
  int64_t hidden_;
  SurveyOptions options_;
  SurveySums sums_;
  std::vector<DeviceMemory> output_sums_;  // double [experts][hidden] of each routed part
  DeviceMemory squares_, grams_;
  std::vector<double> host_;
  std::vector<float> logits_;  // of the batch, where losses are wanted
  int64_t shown_ = 0;          // tokens of the batch that add_all() saw
};

}  // namespace espalier::cuda
