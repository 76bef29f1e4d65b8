#include "engine/feed_forward.h"

#include <algorithm>
#include <cmath>

namespace espalier {

Result<Mlp> Mlp::load(ThreadPool& pool, WeightPolicy policy, const MlpSpec& spec) {
  Mlp mlp;
  for (auto [ref, out] :
       {std::pair{&spec.gate, &mlp.gate}, std::pair{&spec.up, &mlp.up}, std::pair{&spec.down, &mlp.down}}) {
    Result<Linear> loaded = Linear::load(pool, policy, *ref);
    if (!loaded.is_ok()) return loaded.status();
    *out = std::move(loaded.value());
  }
  return mlp;
}

Result<FeedForwardPart> FeedForwardPart::load(ThreadPool& pool, WeightPolicy experts, WeightPolicy rest,
                                              const FeedForwardPartSpec& spec) {
  FeedForwardPart part;
  part.routed_ = spec.kind == FeedForwardPartSpec::Kind::kRouted;
  if (!part.routed_) {
    Result<Mlp> mlp = Mlp::load(pool, rest, spec.mlp);
    if (!mlp.is_ok()) return mlp.status();
    part.experts_.push_back(std::move(mlp.value()));
    if (spec.output_gate.present()) {
      Result<std::vector<float>> gate = load_vector(spec.output_gate);
      if (!gate.is_ok()) return gate.status();
      part.output_gate_ = std::move(gate.value());
    }
    return part;
  }
  Result<Linear> router = Linear::load(pool, {.precision = Precision::kSource, .sparse = false}, spec.router);
  if (!router.is_ok()) return router.status();
  part.router_ = std::move(router.value());
  part.routing_ = spec.routing;
  part.expert_of_row_ = spec.expert_of_row;
  for (const MlpSpec& expert : spec.experts) {
    Result<Mlp> mlp = Mlp::load(pool, experts, expert);
    if (!mlp.is_ok()) return mlp.status();
    part.experts_.push_back(std::move(mlp.value()));
  }
  return part;
}

void FeedForwardPart::restructure(Linear router, RouterOptions routing, std::vector<int32_t> expert_of_row,
                                  std::vector<Mlp> experts) {
  router_ = std::move(router);
  routing_ = std::move(routing);
  expert_of_row_ = std::move(expert_of_row);
  experts_ = std::move(experts);
}

int64_t FeedForwardPart::bytes() const {
  int64_t total = routed_ ? router_.weights.bytes() : 0;
  for (const Mlp& mlp : experts_) total += mlp.bytes();
  return total;
}

int64_t FeedForwardPart::active_bytes() const {
  if (!routed_) return bytes();
  const int64_t router = router_.weights.bytes();
  return router + (bytes() - router) * routing_.top_k / static_cast<int64_t>(experts_.size());
}

Dispatch FeedForwardPart::route_rows(const Compute& compute, const float* x, int64_t rows, int64_t hidden,
                                     Observer* observer, int part) {
  if (!routed_) {
    // A dense part is one expert that every row goes to.
    std::vector<int32_t> chosen(static_cast<size_t>(rows), 0);
    std::vector<float> gates(static_cast<size_t>(rows), 1.0f);
    for (int64_t t = 0; t < rows && !output_gate_.empty(); ++t) {
      float logit = 0;
      for (int64_t i = 0; i < hidden; ++i) logit += x[t * hidden + i] * output_gate_[static_cast<size_t>(i)];
      gates[static_cast<size_t>(t)] = 1.0f / (1.0f + std::exp(-logit));
    }
    return dispatch(chosen.data(), gates.data(), rows, 1, {0}, 1);
  }
  const int64_t router_rows = router_.weights.rows();
  logits_.ensure(static_cast<size_t>(rows * router_rows));
  const Product product{&router_, x, hidden, rows, logits_.data(), router_rows};
  // Rounding what the router sees would send some tokens to other experts; the product is small.
  multiply({compute.pool, compute.kernels, Activations::kFloat32}, std::span(&product, 1));
  return choose(compute, x, logits_.data(), rows, hidden, observer, part);
}

Dispatch FeedForwardPart::choose(const Compute& compute, const float* x, float* logits, int64_t rows, int64_t hidden,
                                 Observer* observer, int part) const {
  const int64_t router_rows = router_.weights.rows();
  // Scoring overwrites them.
  std::vector<float> seen;
  if (observer != nullptr) seen.assign(logits, logits + rows * router_rows);
  std::vector<int32_t> chosen(static_cast<size_t>(rows * routing_.top_k));
  std::vector<float> gates(chosen.size());
  compute.pool.parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
    route(compute.kernels, routing_, logits + begin * router_rows, end - begin, router_rows,
          chosen.data() + begin * routing_.top_k, gates.data() + begin * routing_.top_k);
  });
  if (observer != nullptr) {
    observer->on_routing({.part = part,
                          .tokens = rows,
                          .hidden = hidden,
                          .rows = router_rows,
                          .top_k = routing_.top_k,
                          .input = x,
                          .logits = seen.data(),
                          .chosen = chosen.data(),
                          .gates = gates.data()});
  }
  return dispatch(chosen.data(), gates.data(), rows, routing_.top_k, expert_of_row_,
                  static_cast<int64_t>(experts_.size()));
}

void FeedForwardPart::forward(const Compute& compute, const float* x, int64_t rows, int64_t hidden, float* out,
                              Observer* observer, int part) {
  const Dispatch slots = route_rows(compute, x, rows, hidden, observer, part);
  const int top_k = routed_ ? routing_.top_k : 1;

  // Gathered by expert, so that each expert's weights are read once for all its rows.
  inputs_.ensure(static_cast<size_t>(slots.slots() * hidden));
  compute.pool.parallel_for(slots.slots(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const float* row = x + slots.token[static_cast<size_t>(s)] * hidden;
      std::copy(row, row + hidden, inputs_.data() + s * hidden);
    }
  });

  // Experts may differ in width: each has its own region of the activations.
  std::vector<int64_t> region(experts_.size() + 1, 0);
  for (size_t e = 0; e < experts_.size(); ++e) {
    region[e + 1] = region[e] + slots.count(static_cast<int64_t>(e)) * experts_[e].width();
  }
  activations_.ensure(static_cast<size_t>(region.back()));
  outputs_.ensure(static_cast<size_t>(slots.slots() * hidden));

  std::vector<Product> first;
  std::vector<Product> second;
  for (size_t e = 0; e < experts_.size(); ++e) {
    const int64_t count = slots.count(static_cast<int64_t>(e));
    if (count == 0) continue;
    const Mlp& mlp = experts_[e];
    const int64_t slot = slots.first_slot[e];
    const float* input = inputs_.data() + slot * hidden;
    float* activation = activations_.data() + region[e];
    first.push_back({&mlp.gate, input, hidden, count, activation, mlp.width(), &mlp.up});
    second.push_back({&mlp.down, activation, mlp.width(), count, outputs_.data() + slot * hidden, hidden});
  }
  multiply(compute, first);
  multiply(compute, second);

  if (observer != nullptr && routed_) {
    for (size_t e = 0; e < experts_.size(); ++e) {
      const int64_t slot = slots.first_slot[e];
      observer->on_expert({.part = part,
                           .expert = static_cast<int>(e),
                           .rows = slots.count(static_cast<int64_t>(e)),
                           .hidden = hidden,
                           .width = experts_[e].width(),
                           .tokens = slots.token.data() + slot,
                           .input = inputs_.data() + slot * hidden,
                           .gates = slots.gate.data() + slot,
                           .activation = activations_.data() + region[e],
                           .output = outputs_.data() + slot * hidden});
    }
  }
  compute.pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int k = 0; k < top_k; ++k) {
        const int64_t slot = slots.slots_of[static_cast<size_t>(t * top_k + k)];
        if (slot < 0) break;
        compute.kernels.axpy(slots.gate[static_cast<size_t>(slot)], outputs_.data() + slot * hidden, hidden,
                             out + t * hidden);
      }
    }
  });
}

}  // namespace espalier
