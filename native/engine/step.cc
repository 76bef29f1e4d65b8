#include "engine/step.h"

#include <algorithm>
#include <string>

#include "engine/log_probabilities.h"
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
  const auto bad_top = [&](int32_t top) { return top < 0 || top > limits.vocabulary; };
  for (const SampleRequest& sample : request.samples) {
    if (outside(sample.row)) return usage("a sample asked of a row outside the batch");
    if (bad_top(sample.top.value_or(0))) return usage("more likely tokens asked for than the vocabulary has");
    const LogitRules& rules = sample.rules;
    if (rules.answer_begin < 0 || rules.answer_begin > static_cast<int64_t>(rules.history.size()))
      return usage("an answer begins outside its history");
  }
  for (const ScoreRequest& score : request.scores) {
    if (outside(score.row)) return usage("a score asked of a row outside the batch");
    if (bad_top(score.top)) return usage("more likely tokens asked for than the vocabulary has");
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
  result.sample_scores.resize(request.samples.size());
  result.scores.resize(request.scores.size());
  size_t tops = 0;
  const auto begin = [&](int32_t top) {
    result.top_begin.push_back(tops);
    tops += static_cast<size_t>(top);
  };
  for (const SampleRequest& sample : request.samples) begin(sample.top.value_or(0));
  for (const ScoreRequest& score : request.scores) begin(score.top);
  result.top_ids.resize(tops);
  result.top_scores.resize(tops);
  return result;
}

void answer(const StepRequest& request, size_t index, std::span<float> logits, StepResult& result) {
  const size_t first_sample = request.logits.size();
  const size_t first_score = first_sample + request.samples.size();
  const auto report = [&](int32_t token, int32_t top) {
    const LogProbabilities probabilities(cpu_kernels(), logits);
    const size_t begin = result.top_begin[index - first_sample];
    probabilities.top(std::span(result.top_ids).subspan(begin, static_cast<size_t>(top)),
                      std::span(result.top_scores).subspan(begin, static_cast<size_t>(top)));
    return probabilities.of(token);
  };
  if (index < first_sample) {
    std::copy(logits.begin(), logits.end(), result.logits.begin() + static_cast<int64_t>(index * logits.size()));
  } else if (index < first_score) {
    const size_t at = index - first_sample;
    const SampleRequest& wish = request.samples[at];
    if (!wish.top) {
      wish.rules.apply(logits);
      result.samples[at] = sample(logits, wish.options, wish.step);
      return;
    }
    std::vector<float> ruled(logits.begin(), logits.end());
    wish.rules.apply(ruled);
    result.samples[at] = sample(ruled, wish.options, wish.step);
    result.sample_scores[at] = report(result.samples[at], *wish.top);
  } else {
    const ScoreRequest& wish = request.scores[index - first_score];
    result.scores[index - first_score] = report(wish.target, wish.top);
  }
}

}  // namespace espalier
