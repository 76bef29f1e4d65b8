// One decoder layer: x += attention(norm(x)); x += Σ parts(norm(x)).
#pragma once

#include "engine/attention.h"
#include "engine/feed_forward.h"

namespace espalier {

class DecoderLayer {
 public:
  static Result<DecoderLayer> load(ThreadPool& pool, WeightPolicy experts, WeightPolicy rest, const LayerSpec& spec);

  // Advances `hidden_states` [batch.rows][hidden] in place. `observer` may be null.
  void forward(const Compute& compute, const Batch& batch, const RopeRows& rope, float norm_epsilon, KvLayer& cache,
               int64_t hidden, float* hidden_states, Observer* observer);

  const Attention& attention() const { return attention_; }
  std::vector<FeedForwardPart>& feed_forward() { return feed_forward_; }
  const std::vector<FeedForwardPart>& feed_forward() const { return feed_forward_; }

 private:
  std::vector<float> attention_norm_, feed_forward_norm_;
  Attention attention_;
  std::vector<FeedForwardPart> feed_forward_;
  AlignedBuffer<float> normed_, mixed_;  // [rows][hidden]
};

}  // namespace espalier
