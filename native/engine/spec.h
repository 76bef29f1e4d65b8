// All that the engine knows of a model: plain data, the native twin of lib/models/spec.ts. Whoever builds one has
// checked that shapes fit each other.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/weight_ref.h"
#include "moe/router.h"

namespace espalier {

// Angles are position · inverse_frequencies[i]; cosines and sines are multiplied by `scale`.
struct RopeSpec {
  std::vector<float> inverse_frequencies;  // [head_dim / 2]
  float scale = 1;
};

struct AttentionSpec {
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float scale = 1;
  int64_t window = 0;  // a query sees keys at distances 0 … window − 1; 0: all
  float clip = 0;      // clamp q, k, v to ± clip; 0: no clamp
  WeightRef q, k, v, o;
  WeightRef q_bias, k_bias, v_bias, o_bias;  // absent where there are none
  WeightRef q_norm, k_norm;                  // [1, head_dim] or [1, heads · head_dim]
};

// down(silu(gate x) ⊙ up x)
struct MlpSpec {
  WeightRef gate, up, down;
};

struct FeedForwardPartSpec {
  enum class Kind { kDense, kRouted };
  Kind kind = Kind::kDense;
  // kDense
  MlpSpec mlp;
  WeightRef output_gate;  // [1, hidden]: output scaled by sigmoid(gate · x); absent where there is none
  // kRouted
  WeightRef router;
  RouterOptions routing;
  std::vector<int32_t> expert_of_row;
  std::vector<MlpSpec> experts;
};

// x += attention(norm(x)); x += Σ parts(norm(x))
struct LayerSpec {
  WeightRef attention_norm;
  AttentionSpec attention;
  WeightRef feed_forward_norm;
  std::vector<FeedForwardPartSpec> feed_forward;
};

struct ModelSpec {
  int64_t hidden_size = 0;
  int64_t vocabulary_size = 0;
  int64_t max_positions = 0;
  float norm_epsilon = 1e-5f;
  RopeSpec rope;
  WeightRef embedding, final_norm, head;
  std::vector<LayerSpec> layers;
};

}  // namespace espalier
