#include "engine/engine.h"

#include <algorithm>

#include "engine/log_probabilities.h"

namespace espalier {
namespace {

// Rows whose logits are computed together: enough to share the head's weights, few enough for a vocabulary of 150k.
constexpr int64_t kLogitRows = 64;

bool cancelled(const std::atomic<bool>* cancel) { return cancel != nullptr && cancel->load(std::memory_order_relaxed); }

Status aborted() { return {Code::kAborted, "stopped"}; }

}  // namespace

Result<std::unique_ptr<Engine>> Engine::load(const ModelSpec& spec, const EngineOptions& options,
                                             const std::function<void(int64_t, int64_t)>& progress,
                                             const std::atomic<bool>* cancel) {
  std::unique_ptr<Engine> engine(new Engine);
  engine->pool_ = ThreadPool::shared(options.threads);
  engine->hidden_ = spec.hidden_size;
  engine->vocabulary_ = spec.vocabulary_size;
  engine->max_positions_ = spec.max_positions;
  engine->kv_blocks_ = options.kv_blocks;
  engine->activations_ = options.activations;
  engine->norm_epsilon_ = spec.norm_epsilon;
  engine->rope_ = spec.rope;

  Result<HostMatrix> embedding = HostMatrix::load(spec.embedding);
  if (!embedding.is_ok()) return embedding.status();
  engine->embedding_ = std::move(embedding.value());
  Result<std::vector<float>> norm = load_vector(spec.final_norm);
  if (!norm.is_ok()) return norm.status();
  engine->final_norm_ = std::move(norm.value());
  Result<Linear> head = Linear::load(*engine->pool_, options.rest, spec.head);
  if (!head.is_ok()) return head.status();
  engine->head_ = std::move(head.value());

  const auto count = static_cast<int64_t>(spec.layers.size());
  for (int64_t i = 0; i < count; ++i) {
    if (cancelled(cancel)) return aborted();
    Result<DecoderLayer> layer =
        DecoderLayer::load(*engine->pool_, options.experts, options.rest, spec.layers[static_cast<size_t>(i)]);
    if (!layer.is_ok()) return layer.status();
    engine->layers_.push_back(std::move(layer.value()));
    const Attention& attention = engine->layers_.back().attention();
    if (!engine->cache_.emplace_back().allocate(options.kv_blocks, attention.kv_heads(), attention.head_dim(),
                                                options.kv_type)) {
      return Status(Code::kOutOfMemory,
                    "not enough memory for a KV cache of " + std::to_string(options.kv_blocks * kKvBlock) + " tokens");
    }
    if (progress) progress(i + 1, count);
  }
  engine->collect_info();
  return engine;
}

void Engine::collect_info() {
  info_.weight_bytes = head_.weights.bytes();
  info_.active_bytes = info_.weight_bytes;
  for (const KvLayer& layer : cache_) info_.kv_bytes += layer.bytes();
  for (DecoderLayer& layer : layers_) {
    info_.weight_bytes += layer.attention().bytes();
    info_.active_bytes += layer.attention().bytes();
    for (FeedForwardPart& part : layer.feed_forward()) {
      info_.weight_bytes += part.bytes();
      info_.active_bytes += part.active_bytes();
      if (!part.is_routed()) continue;
      for (const Mlp& expert : part.experts()) {
        info_.expert_bytes += expert.bytes();
        for (const Linear* matrix : {&expert.gate, &expert.up, &expert.down}) {
          const std::string name = matrix->weights.format().name();
          if (std::find(info_.formats.begin(), info_.formats.end(), name) == info_.formats.end())
            info_.formats.push_back(name);
        }
      }
    }
  }
}

Status Engine::check(const StepRequest& request) const {
  const auto usage = [](const std::string& what) { return Status(Code::kUsage, what); };
  const auto rows = static_cast<int64_t>(request.tokens.size());
  if (request.batch.rows != rows) return usage("a batch must have one token for each row");
  for (const int32_t token : request.tokens) {
    if (token < 0 || token >= vocabulary_) {
      return usage("token id " + std::to_string(token) + " is outside the vocabulary of " +
                   std::to_string(vocabulary_));
    }
  }
  int64_t next = 0;
  for (const Slice& slice : request.batch.slices) {
    if (slice.first_row != next || slice.count < 1 || slice.position < 0)
      return usage("slices must cover the rows in order");
    next += slice.count;
    const int64_t end = slice.position + slice.count;
    if (end > max_positions_) {
      return Status(Code::kContextFull, "position " + std::to_string(end - 1) + " is past the model's last, " +
                                            std::to_string(max_positions_ - 1));
    }
    if (static_cast<int64_t>(slice.blocks.size()) * kKvBlock < end)
      return usage("a block table is too short for its sequence");
    for (const int32_t block : slice.blocks) {
      if (block < 0 || block >= kv_blocks_) return usage("a block table names a block outside the cache");
    }
  }
  if (next != rows) return usage("slices must cover the rows in order");
  const auto outside = [&](int32_t row) { return row < 0 || row >= rows; };
  const auto bad_top = [&](int32_t top) { return top < 0 || top > vocabulary_; };
  for (const int32_t row : request.logits) {
    if (outside(row)) return usage("logits asked of a row outside the batch");
  }
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
    if (score.target < 0 || score.target >= vocabulary_) return usage("a target token is outside the vocabulary");
  }
  return Status::ok();
}

void Engine::embed(const std::vector<int32_t>& tokens) {
  const auto rows = static_cast<int64_t>(tokens.size());
  hidden_states_.ensure(static_cast<size_t>(rows * hidden_));
  pool_->parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      embedding_->read_row(tokens[static_cast<size_t>(t)], hidden_states_.data() + t * hidden_);
    }
  });
}

void Engine::answer(const StepRequest& request, StepResult& result) {
  const CpuKernels& kernels = cpu_kernels();
  const Compute compute{*pool_, kernels, activations_};
  // Requests one after the other in one list: logits, samples, scores.
  std::vector<int32_t> rows = request.logits;
  for (const SampleRequest& sample : request.samples) rows.push_back(sample.row);
  for (const ScoreRequest& score : request.scores) rows.push_back(score.row);
  const size_t first_sample = request.logits.size();
  const size_t first_score = first_sample + request.samples.size();
  result.logits.resize(request.logits.size() * static_cast<size_t>(vocabulary_));
  result.samples.resize(request.samples.size());
  result.sample_scores.resize(request.samples.size());
  result.scores.resize(request.scores.size());
  // Where the most likely tokens of each sample and score begin.
  std::vector<size_t> top_begin = {0};
  for (const SampleRequest& sample : request.samples)
    top_begin.push_back(top_begin.back() + static_cast<size_t>(sample.top.value_or(0)));
  for (const ScoreRequest& score : request.scores)
    top_begin.push_back(top_begin.back() + static_cast<size_t>(score.top));
  result.top_ids.resize(top_begin.back());
  result.top_scores.resize(top_begin.back());
  const auto report_top = [&](size_t index, const LogProbabilities& probabilities) {
    const size_t begin = top_begin[index];
    const size_t count = top_begin[index + 1] - begin;
    probabilities.top(std::span(result.top_ids).subspan(begin, count),
                      std::span(result.top_scores).subspan(begin, count));
  };

  last_.ensure(static_cast<size_t>(kLogitRows * hidden_));
  logits_.ensure(static_cast<size_t>(kLogitRows * vocabulary_));
  for (size_t first = 0; first < rows.size(); first += kLogitRows) {
    const auto count = std::min<int64_t>(kLogitRows, static_cast<int64_t>(rows.size() - first));
    for (int64_t i = 0; i < count; ++i) {
      kernels.rms_norm(hidden_states_.data() + rows[first + static_cast<size_t>(i)] * hidden_, final_norm_.data(),
                       hidden_, norm_epsilon_, last_.data() + i * hidden_);
    }
    const Product product{&head_, last_.data(), hidden_, count, logits_.data(), vocabulary_};
    multiply(compute, std::span(&product, 1));
    pool_->parallel_for(count, 1, [&](int64_t i, int64_t) {
      const std::span logits(logits_.data() + i * vocabulary_, static_cast<size_t>(vocabulary_));
      const size_t index = first + static_cast<size_t>(i);
      if (index < first_sample) {
        std::copy(logits.begin(), logits.end(), result.logits.data() + index * logits.size());
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
        const LogProbabilities probabilities(kernels, logits);
        result.sample_scores[at] = probabilities.of(result.samples[at]);
        report_top(at, probabilities);
      } else {
        const ScoreRequest& wish = request.scores[index - first_score];
        const LogProbabilities probabilities(kernels, logits);
        result.scores[index - first_score] = probabilities.of(wish.target);
        report_top(index - first_sample, probabilities);
      }
    });
  }
}

Result<StepResult> Engine::step(const StepRequest& request, const std::atomic<bool>* cancel) {
  ESPALIER_TRY(check(request));
  std::lock_guard lock(mutex_);
  const Compute compute{*pool_, cpu_kernels(), activations_};
  embed(request.tokens);
  const RopeRows rope = RopeRows::compute(rope_, request.batch);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (cancelled(cancel)) return aborted();
    layers_[i].forward(compute, request.batch, rope, norm_epsilon_, cache_[i], hidden_, hidden_states_.data(), nullptr);
  }
  StepResult result;
  answer(request, result);
  return result;
}

}  // namespace espalier
