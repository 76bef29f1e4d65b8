// The feed-forward of a layer: a sum of dense and routed parts.
#pragma once

#include "engine/linear.h"
#include "engine/spec.h"

namespace espalier {

// What one expert saw in a batch.
struct ExpertBatch {
  int part = 0;  // index among the layer's feed-forward parts
  int expert = 0;
  int64_t rows = 0;
  int64_t hidden = 0;                 // width and stride of input and output
  int64_t width = 0;                  // width and stride of activation
  const int32_t* tokens = nullptr;    // row of the batch that each row is
  const float* input = nullptr;       // the layer's normalised input
  const float* gates = nullptr;       // the factor on each row's output
  const float* activation = nullptr;  // silu(gate x) ⊙ up x
  const float* output = nullptr;      // before the gate
};

// What the router of a part did with a batch.
struct RoutingBatch {
  int part = 0;
  int64_t tokens = 0;
  int64_t hidden = 0;
  int64_t rows = 0;  // of the router
  int top_k = 0;
  const float* input = nullptr;     // [tokens][hidden]: the layer's normalised input
  const float* logits = nullptr;    // [tokens][rows]
  const int32_t* chosen = nullptr;  // [tokens][top_k]: router rows, best first
  const float* gates = nullptr;     // [tokens][top_k]
};

// Sees the routing and every expert of every batch, in a fixed order; the forward pass knows nothing of what it
// collects.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void on_routing(const RoutingBatch& /*batch*/) {}
  virtual void on_expert(const ExpertBatch& batch) = 0;
};

struct Mlp {
  Linear gate, up, down;

  static Result<Mlp> load(ThreadPool& pool, WeightPolicy policy, const MlpSpec& spec);
  int64_t width() const { return gate.weights.rows(); }
  int64_t bytes() const { return gate.weights.bytes() + up.weights.bytes() + down.weights.bytes(); }
};

class FeedForwardPart {
 public:
  static Result<FeedForwardPart> load(ThreadPool& pool, WeightPolicy experts, WeightPolicy rest,
                                      const FeedForwardPartSpec& spec);

  // out += part(x), both [rows][hidden].
  void forward(const Compute& compute, const float* x, int64_t rows, int64_t hidden, float* out, Observer* observer,
               int part);

  // The experts; the one MLP of a dense part.
  std::vector<Mlp>& experts() { return experts_; }
  const RouterOptions& routing() const { return routing_; }
  bool is_routed() const { return routed_; }
  // Of a routed part.
  const Linear& router() const { return router_; }
  // [hidden]; of a dense part, or empty.
  const std::vector<float>& output_gate() const { return output_gate_; }
  // What follows the router's product of a routed part: each token's experts and gates. Overwrites `logits`
  // [rows][router rows]; `x` is for the observer.
  Dispatch choose(const Compute& compute, const float* x, float* logits, int64_t rows, int64_t hidden,
                  Observer* observer, int part) const;
  // Puts other experts and another router in the place of a routed part's.
  void restructure(Linear router, RouterOptions routing, std::vector<int32_t> expert_of_row, std::vector<Mlp> experts);
  int64_t bytes() const;
  // What one token reads of it: the router and top_k experts of mean size.
  int64_t active_bytes() const;

 private:
  Dispatch route_rows(const Compute& compute, const float* x, int64_t rows, int64_t hidden, Observer* observer,
                      int part);

  bool routed_ = false;
  Linear router_;
  RouterOptions routing_;
  std::vector<int32_t> expert_of_row_;
  std::vector<float> output_gate_;
  std::vector<Mlp> experts_;
  AlignedBuffer<float> logits_, inputs_, activations_, outputs_;
};

}  // namespace espalier
