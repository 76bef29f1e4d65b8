// Grouped-query attention over the paged KV cache.
#pragma once

#include "engine/attend.h"
#include "engine/batch.h"
#include "engine/linear.h"
#include "engine/spec.h"

namespace espalier {

class Attention {
 public:
  static Result<Attention> load(ThreadPool& pool, WeightPolicy policy, const AttentionSpec& spec);

  // out = attention(x) for the rows of the batch, whose keys and values are added to the cache. x and out are
  // [rows][hidden].
  void forward(const Compute& compute, const Batch& batch, const RopeRows& rope, float norm_epsilon, KvLayer& cache,
               const float* x, int64_t hidden, float* out);

  int kv_heads() const { return shape_.kv_heads; }
  int head_dim() const { return shape_.head_dim; }
  int64_t bytes() const;

 private:
  void prepare_heads(const Compute& compute, const RopeRows& rope, float norm_epsilon, int64_t row);
  void write_cache(const Compute& compute, const Slice& slice, int64_t index, KvLayer& cache) const;

  AttendShape shape_;
  float clip_ = 0;
  Linear q_, k_, v_, o_;
  std::vector<float> q_norm_, k_norm_;
  AttendLoop attend_;
  AlignedBuffer<float> queries_, keys_, values_, mixed_;  // [rows][heads · head_dim]
};

}  // namespace espalier
