#include "engine/cpu_engine.h"

#include <algorithm>

namespace espalier {
namespace {

// Rows whose logits are computed together: enough to share the head's weights, few enough for a vocabulary of 150k.
constexpr int64_t kLogitRows = 64;

bool cancelled(const std::atomic<bool>* cancel) { return cancel != nullptr && cancel->load(std::memory_order_relaxed); }

Status aborted() { return {Code::kAborted, "stopped"}; }

}  // namespace

Result<std::unique_ptr<Engine>> CpuEngine::load(const ModelSpec& spec, const EngineOptions& options,
                                                const LoadProgress& progress, const std::atomic<bool>* cancel) {
  std::unique_ptr<CpuEngine> engine(new CpuEngine);
  engine->pool_ = ThreadPool::shared(options.threads);
  engine->hidden_ = spec.hidden_size;
  engine->limits_ = {spec.vocabulary_size, spec.max_positions, options.kv_blocks};
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
  return std::unique_ptr<Engine>(std::move(engine));
}

void CpuEngine::collect_info() {
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

void CpuEngine::embed(const std::vector<int32_t>& tokens) {
  const auto rows = static_cast<int64_t>(tokens.size());
  hidden_states_.ensure(static_cast<size_t>(rows * hidden_));
  pool_->parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      embedding_->read_row(tokens[static_cast<size_t>(t)], hidden_states_.data() + t * hidden_);
    }
  });
}

StepResult CpuEngine::answer_all(const StepRequest& request) {
  const Compute compute{*pool_, cpu_kernels(), activations_};
  const int64_t vocabulary = limits_.vocabulary;
  const std::vector<int32_t> rows = answered_rows(request);
  StepResult result = empty_result(request, vocabulary);
  last_.ensure(static_cast<size_t>(kLogitRows * hidden_));
  logits_.ensure(static_cast<size_t>(kLogitRows * vocabulary));
  for (size_t first = 0; first < rows.size(); first += kLogitRows) {
    const auto count = std::min<int64_t>(kLogitRows, static_cast<int64_t>(rows.size() - first));
    for (int64_t i = 0; i < count; ++i) {
      compute.kernels.rms_norm(hidden_states_.data() + rows[first + static_cast<size_t>(i)] * hidden_,
                               final_norm_.data(), hidden_, norm_epsilon_, last_.data() + i * hidden_);
    }
    const Product product{&head_, last_.data(), hidden_, count, logits_.data(), vocabulary};
    multiply(compute, std::span(&product, 1));
    pool_->parallel_for(count, 1, [&](int64_t i, int64_t) {
      const std::span<float> logits(logits_.data() + i * vocabulary, static_cast<size_t>(vocabulary));
      answer(request, first + static_cast<size_t>(i), logits, result);
    });
  }
  return result;
}

Result<StepResult> CpuEngine::step(const StepRequest& request, const std::atomic<bool>* cancel) {
  ESPALIER_TRY(check_step(request, limits_));
  std::lock_guard lock(mutex_);
  const Compute compute{*pool_, cpu_kernels(), activations_};
  embed(request.tokens);
  const RopeRows rope = RopeRows::compute(rope_, request.batch);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (cancelled(cancel)) return aborted();
    layers_[i].forward(compute, request.batch, rope, norm_epsilon_, cache_[i], hidden_, hidden_states_.data(), nullptr);
  }
  return answer_all(request);
}

}  // namespace espalier
