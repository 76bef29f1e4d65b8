// Shares the attention of a batch out over threads.
#pragma once

#include "engine/batch.h"
#include "engine/linear.h"

namespace espalier {

struct AttendShape {
  int heads = 0;
  int kv_heads = 0;  // divides heads: head h reads KV head h / (heads / kv_heads)
  int head_dim = 0;
  float scale = 1;     // of the scores
  int64_t window = 0;  // a query sees keys at distances 0 … window − 1; 0: all
};

// Keeps its partial results' memory from call to call.
class AttendLoop {
 public:
  // out = causal attention of `queries`, both [batch.rows][heads · head_dim], over `cache`, which holds the keys and
  // values of the batch's rows already. A row's bits depend neither on the rest of the batch nor on the number of
  // threads.
  void run(const Compute& compute, const AttendShape& shape, const Batch& batch, KvLayer& cache, const float* queries,
           float* out);

 private:
  AlignedBuffer<float> partials_;
};

}  // namespace espalier
