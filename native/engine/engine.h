// A model ready to run. Its one entry is the batch step.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/decoder_layer.h"
#include "engine/logit_rules.h"
#include "engine/sampler.h"

namespace espalier {

struct EngineOptions {
  int threads = 0;        // 0: one for each usable core
  WeightPolicy experts;   // of the routed experts
  WeightPolicy rest;      // of attention, head, dense and shared parts; routers are never quantised
  int64_t kv_blocks = 0;  // blocks of kKvBlock tokens in the cache
  KvType kv_type = KvType::kF32;
  Activations activations = Activations::kFloat32;
};

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
};

struct EngineInfo {
  int64_t weight_bytes = 0;          // as packed
  int64_t expert_bytes = 0;          // the routed experts' share of it
  int64_t active_bytes = 0;          // weights that one token of decode reads
  int64_t kv_bytes = 0;              // of the KV cache when it is full
  std::vector<std::string> formats;  // the distinct formats of the routed experts
};

class Engine {
 public:
  // Reads and packs all weights; `progress` (layers done, layers) may be empty, `cancel` may be null.
  static Result<std::unique_ptr<Engine>> load(const ModelSpec& spec, const EngineOptions& options,
                                              const std::function<void(int64_t, int64_t)>& progress,
                                              const std::atomic<bool>* cancel);

  // Runs the batch and answers its requests. kUsage for tokens, rows or blocks out of range, kContextFull for positions
  // past max_positions; kAborted when `cancel` (may be null) turned true, which leaves the cache entries of the batch's
  // rows undefined. Calls from several threads run one after the other.
  Result<StepResult> step(const StepRequest& request, const std::atomic<bool>* cancel);

  const EngineInfo& info() const { return info_; }

 private:
  Engine() = default;
  Status check(const StepRequest& request) const;
  void collect_info();
  void embed(const std::vector<int32_t>& tokens);
  void answer(const StepRequest& request, StepResult& result);

  std::mutex mutex_;
  std::shared_ptr<ThreadPool> pool_;
  int64_t hidden_ = 0;
  int64_t vocabulary_ = 0;
  int64_t max_positions_ = 0;
  int64_t kv_blocks_ = 0;
  Activations activations_ = Activations::kFloat32;
  float norm_epsilon_ = 0;
  RopeSpec rope_;
  std::optional<HostMatrix> embedding_;
  std::vector<float> final_norm_;
  Linear head_;
  std::vector<DecoderLayer> layers_;
  std::vector<KvLayer> cache_;
  EngineInfo info_;
  AlignedBuffer<float> hidden_states_, last_, logits_;
};

}  // namespace espalier
