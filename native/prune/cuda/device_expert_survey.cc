#include "prune/cuda/device_expert_survey.h"

#include "kernels/cuda/calibration.h"
#include "kernels/cuda/expert_outputs.h"

namespace espalier::cuda {
namespace {

constexpr auto kDoubleBytes = static_cast<int64_t>(sizeof(double));

}  // namespace

Result<std::unique_ptr<LayerSurvey>> DeviceExpertSurvey::create(int device, ThreadPool& pool, cudaStream_t stream,
                                                                std::vector<FeedForwardPart>& parts, int64_t hidden,
                                                                const SurveyOptions& options) {
  Result<SurveySums> sums = SurveySums::create(pool, parts, options);
  if (!sums.is_ok()) return sums.status();
  std::unique_ptr<DeviceExpertSurvey> made(
      new DeviceExpertSurvey(device, pool, stream, hidden, options, std::move(sums.value())));
  for (FeedForwardPart& part : parts) {
    DeviceMemory& own = made->output_sums_.emplace_back();
    if (!part.is_routed() || !options.mean_outputs) continue;
    const int64_t bytes = static_cast<int64_t>(part.experts().size()) * hidden * kDoubleBytes;
    ESPALIER_TRY(own.ensure(bytes));
    ESPALIER_CUDA_TRY(cudaMemsetAsync(own.data(), 0, static_cast<size_t>(bytes), stream));
  }
  return std::unique_ptr<LayerSurvey>(std::move(made));
}

void DeviceExpertSurvey::on_routing(const RoutingBatch& batch) {
  sums_.add_routing(batch);
  shown_ = 0;
  if (options_.keep > 0) logits_.assign(batch.logits, batch.logits + batch.tokens * batch.rows);
}

Status DeviceExpertSurvey::fetch(const DeviceMemory& from, int64_t count, std::vector<double>& to) const {
  to.resize(static_cast<size_t>(count));
  ESPALIER_CUDA_TRY(
      cudaMemcpyAsync(to.data(), from.data(), to.size() * sizeof(double), cudaMemcpyDeviceToHost, stream_));
  return to_status(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

Status DeviceExpertSurvey::add_routed(int part, const ExpertOutputs& outputs) {
  const GemmGroup& last = outputs.on_host->back();
  const int64_t rows = last.first_row + last.rows;
  ESPALIER_TRY(squares_.ensure(rows * kDoubleBytes));
  ESPALIER_TRY(
      row_squares({.x = outputs.outputs, .rows = rows, .cols = hidden_, .squares = squares_.as<double>()}, stream_));
  ESPALIER_TRY(fetch(squares_, rows, host_));
  for (size_t e = 0; e < outputs.on_host->size(); ++e) {
    const GemmGroup& own = (*outputs.on_host)[e];
    sums_.add_norms(part, static_cast<int>(e), own.rows, outputs.gates + own.first_row, host_.data() + own.first_row);
  }
  return Status::ok();
}

Status DeviceExpertSurvey::add_all(int part, const ExpertOutputs& outputs) {
  const auto experts = static_cast<int64_t>(outputs.on_host->size());
  const int64_t tokens = outputs.on_host->front().rows;
  if (options_.mean_outputs) {
    ESPALIER_TRY(add_columns({.groups = outputs.groups,
                              .group_count = static_cast<int32_t>(experts),
                              .x = outputs.outputs,
                              .cols = hidden_,
                              .sums = output_sums_[static_cast<size_t>(part)].as<double>()},
                             stream_));
  }
  if (KeptSetLosses* losses = sums_.losses(part)) {
    const int64_t size = tokens * experts * experts;
    ESPALIER_TRY(grams_.ensure(size * kDoubleBytes));
    ESPALIER_TRY(output_grams({.outputs = outputs.outputs,
                               .experts = experts,
                               .tokens = tokens,
                               .hidden = hidden_,
                               .grams = grams_.as<double>()},
                              stream_));
    ESPALIER_TRY(fetch(grams_, size, host_));
    losses->add(pool_, logits_.data() + shown_ * experts, host_.data(), tokens);
  }
  shown_ += tokens;
  return Status::ok();
}

void DeviceExpertSurvey::end_batch(int part) {
  if (KeptSetLosses* losses = sums_.losses(part)) losses->end_batch();
}

Result<std::vector<PartSurvey>> DeviceExpertSurvey::finish() {
  ESPALIER_CUDA_TRY(cudaSetDevice(device_));
  for (size_t p = 0; p < output_sums_.size(); ++p) {
    const DeviceMemory& sums = output_sums_[p];
    if (sums.bytes() == 0) continue;
    ESPALIER_TRY(fetch(sums, sums.bytes() / kDoubleBytes, sums_.output_sums(static_cast<int>(p))));
  }
  return sums_.finish();
}

}  // namespace espalier::cuda
