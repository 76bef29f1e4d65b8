#include "engine/step.h"

#include <algorithm>
#include <string>

#include "kernels/cpu/kernels.h"

namespace espalier {

Status check_step(const StepRequest& request, const StepLimits& limits) {
  const auto usage = [](const std::string& what) { return Status(Code::kUsage, what); };
  const auto rows = static_cast<int64_t>(request.tokens.size());
  if (request.batch.rows != rows) return usage("a batch must have one token for each row");
  for (const int32_t token : request.tokens) {
    if (token < 0 || token >= limits.vocabulary) {
      return usage("token id " + std::to_string(token) + " is outside the vocabulary of " +
                   std::to_string(limits.vocabulary));
    }
  }
  int64_t next = 0;
  for (const Slice& slice : request.batch.slices) {
    if (slice.first_row != next || slice.count < 1 || slice.position < 0)
      return usage("slices must cover the rows in order");
    next += slice.count;
    const int64_t end = slice.position + slice.count;
    if (end > limits.max_positions) {
      return Status(Code::kContextFull, "position " + std::to_string(end - 1) + " is past the model's last, " +
                                            std::to_string(limits.max_positions - 1));
    }
    if (static_cast<int64_t>(slice.blocks.size()) * kKvBlock < end)
      return usage("a block table is too short for its sequence");
    for (const int32_t block : slice.blocks) {
      if (block < 0 || block >= limits.kv_blocks) return usage("a block table names a block outside the cache");
    }
  }
  if (next != rows) return usage("slices must cover the rows in order");
  const auto outside = [&](int32_t row) { return row < 0 || row >= rows; };
  for (const int32_t row : request.logits) {
    if (outside(row)) return usage("logits asked of a row outside the batch");
  }
  for (const SampleRequest& sample : request.samples) {
    if (outside(sample.row)) return usage("a sample asked of a row outside the batch");
  }
  for (const ScoreRequest& score : request.scores) {
    if (outside(score.row)) return usage("a score asked of a row outside the batch");
    if (score.target < 0 || score.target >= limits.vocabulary) return usage("a target token is outside the vocabulary");
  }
  return Status::ok();
}

std::vector<int32_t> answered_rows(const StepRequest& request) {
  std::vector<int32_t> rows = request.logits;
  for (const SampleRequest& sample : request.samples) rows.push_back(sample.row);
  for (const ScoreRequest& score : request.scores) rows.push_back(score.row);
  return rows;
}

StepResult empty_result(const StepRequest& request, int64_t vocabulary) {
  StepResult result;
  result.logits.resize(request.logits.size() * static_cast<size_t>(vocabulary));
  result.samples.resize(request.samples.size());
  result.scores.resize(request.scores.size());
  return result;
}

void answer(const StepRequest& request, size_t index, std::span<float> logits, StepResult& result) {
  const size_t first_sample = request.logits.size();
  const size_t first_score = first_sample + request.samples.size();
  if (index < first_sample) {
    std::copy(logits.begin(), logits.end(), result.logits.begin() + static_cast<int64_t>(index * logits.size()));
  } else if (index < first_score) {
    const SampleRequest& wish = request.samples[index - first_sample];
    result.samples[index - first_sample] = sample(logits, wish.options, wish.history, wish.step);
  } else {
    const ScoreRequest& wish = request.scores[index - first_score];
    result.scores[index - first_score] = static_cast<double>(logits[static_cast<size_t>(wish.target)]) -
                                         cpu_kernels().log_sum_exp(logits.data(), static_cast<int64_t>(logits.size()));
  }
}

}  // namespace espalier
