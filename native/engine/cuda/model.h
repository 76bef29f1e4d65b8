// A model in device memory: the twin of engine/spec.h.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/product.h"
#include "moe/router.h"

namespace espalier::cuda {

// One matrix, or those of a layer's experts.
struct Matrices {
  DeviceMemory tiles;
  DeviceMemory starts;
  DeviceTiles view;

  int64_t bytes() const { return tiles.bytes() + starts.bytes(); }
  std::string format() const { return layout_name(view.layout, view.n) + (holds_codes(view.layout) ? "" : " bf16"); }
};

// Elements of a small matrix in the type that they are multiplied in.
struct Elements {
  DeviceMemory memory;
  bool is_bf16 = true;  // else float
};

// A dense part is a routed one of one expert, which all rows go to; an output gate is the router of one row that scores
// by sigmoid.
struct FeedForwardPart {
  Matrices gate_up;  // [experts][2 · width][hidden], eight rows of each in turns
  Matrices down;     // [experts][hidden][width]
  int width = 0;     // of the widest expert, up to a multiple of 32
  int experts = 1;
  bool is_routed = false;  // has several experts to choose of
  int router_rows = 0;     // 0: no router, no gates
  Elements router;         // [router_rows][hidden]
  RouterOptions routing;
  DeviceMemory correction_bias, skip_below;  // floats, empty where there are none
  DeviceMemory expert_of_row;
};

struct Layer {
  DeviceMemory attention_norm, feed_forward_norm;
  HeadShape heads;
  float scale = 1;
  int window = 0;
  float clip = 0;
  Matrices qkv;  // one matrix: rows of Wq, Wk, Wv
  Matrices output;
  DeviceMemory qkv_bias, output_bias, q_norm, k_norm;  // empty where there are none
  DeviceMemory keys, values;                           // the KV cache
  std::vector<FeedForwardPart> feed_forward;

  int qkv_width() const { return (heads.heads + 2 * heads.kv_heads) * heads.head_dim; }
  int query_width() const { return heads.heads * heads.head_dim; }
};

// A whole model, or what one device has of it: the first also embeds, the last also has the head.
struct Model {
  int hidden = 0;
  int vocabulary = 0;
  float norm_epsilon = 0;
  Elements embedding;
  DeviceMemory inverse_frequencies;
  int rope_half = 0;
  float rope_scale = 1;
  DeviceMemory final_norm;
  Matrices head;
  bool kv_is_bf16 = false;
  int parts = 1;  // of activations
  std::vector<Layer> layers;

  bool embeds() const { return embedding.memory.bytes() > 0; }
  bool has_head() const { return head.bytes() > 0; }
};

struct StageModel {
  int device = 0;  // that it lies on
  Model model;
};

// The widest of something that layers or their parts have.
template <class List, class Width>
int64_t widest(const List& list, const Width& width) {
  int64_t most = 0;
  for (const auto& item : list) most = std::max<int64_t>(most, width(item));
  return most;
}

}  // namespace espalier::cuda
