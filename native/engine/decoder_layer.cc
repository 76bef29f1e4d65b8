#include "engine/decoder_layer.h"

namespace espalier {
namespace {

// Rows of a loop over activations that are worth a visit by a thread.
constexpr int64_t kRows = 8;

void norm_rows(const Compute& compute, const std::vector<float>& weight, float epsilon, const float* x, int64_t rows,
               float* out) {
  const auto width = static_cast<int64_t>(weight.size());
  compute.pool.parallel_for(rows, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      compute.kernels.rms_norm(x + t * width, weight.data(), width, epsilon, out + t * width);
    }
  });
}

void add_rows(const Compute& compute, const float* x, int64_t rows, int64_t width, float* sum) {
  compute.pool.parallel_for(rows, kRows, [&](int64_t begin, int64_t end) {
    compute.kernels.axpy(1.0f, x + begin * width, (end - begin) * width, sum + begin * width);
  });
}

}  // namespace

Result<DecoderLayer> DecoderLayer::load(ThreadPool& pool, WeightPolicy experts, WeightPolicy rest,
                                        const LayerSpec& spec) {
  DecoderLayer layer;
  for (auto [ref, out] : {std::pair{&spec.attention_norm, &layer.attention_norm_},
                          std::pair{&spec.feed_forward_norm, &layer.feed_forward_norm_}}) {
    Result<std::vector<float>> loaded = load_vector(*ref);
    if (!loaded.is_ok()) return loaded.status();
    *out = std::move(loaded.value());
  }
  Result<Attention> attention = Attention::load(pool, rest, spec.attention);
  if (!attention.is_ok()) return attention.status();
  layer.attention_ = std::move(attention.value());
  for (const FeedForwardPartSpec& part_spec : spec.feed_forward) {
    Result<FeedForwardPart> part = FeedForwardPart::load(pool, experts, rest, part_spec);
    if (!part.is_ok()) return part.status();
    layer.feed_forward_.push_back(std::move(part.value()));
  }
  return layer;
}

void DecoderLayer::forward(const Compute& compute, const Batch& batch, const RopeRows& rope, float norm_epsilon,
                           KvLayer& cache, int64_t hidden, float* hidden_states, Observer* observer) {
  const int64_t size = batch.rows * hidden;
  normed_.ensure(static_cast<size_t>(size));
  mixed_.ensure(static_cast<size_t>(size));
  norm_rows(compute, attention_norm_, norm_epsilon, hidden_states, batch.rows, normed_.data());
  attention_.forward(compute, batch, rope, norm_epsilon, cache, normed_.data(), hidden, mixed_.data());
  add_rows(compute, mixed_.data(), batch.rows, hidden, hidden_states);

  norm_rows(compute, feed_forward_norm_, norm_epsilon, hidden_states, batch.rows, normed_.data());
  // The parts are summed before the residual, as the reference implementations do.
  std::fill(mixed_.data(), mixed_.data() + size, 0.0f);
  for (size_t p = 0; p < feed_forward_.size(); ++p) {
    feed_forward_[p].forward(compute, normed_.data(), batch.rows, hidden, mixed_.data(), observer, static_cast<int>(p));
  }
  add_rows(compute, mixed_.data(), batch.rows, hidden, hidden_states);
}

}  // namespace espalier
