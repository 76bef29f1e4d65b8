// What a batch step is asked and what it answers, the same for every engine.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/status.h"
#include "engine/batch.h"
#include "engine/logit_rules.h"
#include "engine/sampler.h"

namespace espalier {

// A row of the batch whose logits the next token is drawn from.
struct SampleRequest {
  int32_t row = 0;
  SamplerOptions options;
  LogitRules rules;
  uint64_t step = 0;           // number of the draw within its sequence
  std::optional<int32_t> top;  // report the drawn token's log-probability, and so many of the most likely tokens
};

// A row whose logits give the log-probability of a known next token.
struct ScoreRequest {
  int32_t row = 0;
  int32_t target = 0;
  int32_t top = 0;  // report so many of the most likely tokens, too
};

struct StepRequest {
  std::vector<int32_t> tokens;  // [batch.rows]
  Batch batch;
  std::vector<int32_t> logits;  // rows to return logits of
  std::vector<SampleRequest> samples;
  std::vector<ScoreRequest> scores;
};

struct StepResult {
  std::vector<float> logits;     // [request.logits.size()][vocabulary]
  std::vector<int32_t> samples;  // a token for each sample request
  // Natural log-probabilities of the model's own distribution: before rules, temperature and filters.
  std::vector<double> sample_scores;  // of each sampled token, 0 where the request has no `top`
  std::vector<double> scores;         // for each score request
  std::vector<int32_t> top_ids;       // the most likely tokens of samples, then of scores, as many each as it asked for
  std::vector<double> top_scores;     // [top_ids.size()]
  std::vector<size_t> top_begin;      // where those of each sample, then of each score begin
};

// What a request must keep within.
struct StepLimits {
  int64_t vocabulary = 0;
  int64_t max_positions = 0;
  int64_t kv_blocks = 0;
};

// kUsage for tokens, rows or blocks out of range, kContextFull for positions past max_positions.
Status check_step(const StepRequest& request, const StepLimits& limits);

// The rows that answers are asked of, in one list: logits, samples, scores. A row may be there more than once.
std::vector<int32_t> answered_rows(const StepRequest& request);

// Makes room for all answers.
StepResult empty_result(const StepRequest& request, int64_t vocabulary);

// Writes the answer number `index` of that list from the row's logits, which it may overwrite.
void answer(const StepRequest& request, size_t index, std::span<float> logits, StepResult& result);

}  // namespace espalier
