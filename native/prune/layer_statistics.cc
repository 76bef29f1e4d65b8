#include "prune/layer_statistics.h"

#include <algorithm>
#include <cmath>

namespace espalier {
namespace {

// Tokens of an expert that are read back together.
constexpr int64_t kGatheredTokens = 1024;

}  // namespace

Result<std::unique_ptr<LayerStatistics>> LayerStatistics::create(const Compute& compute,
                                                                 std::vector<FeedForwardPart>& parts, int64_t hidden,
                                                                 const StatisticsRequest& request) {
  std::unique_ptr<LayerStatistics> made(new LayerStatistics(compute, parts, hidden, request));
  for (size_t p = 0; p < parts.size(); ++p) {
    made->first_expert_.push_back(made->lengths_.size());
    made->pooled_.emplace_back();
    if (!parts[p].is_routed()) continue;
    if (made->first_routed_ < 0) made->first_routed_ = static_cast<int>(p);
    if (request.gram && request.pooled) {
      Result<SiteStatistics> pooled = SiteStatistics::create(hidden, true);
      if (!pooled.is_ok()) return pooled.status();
      made->pooled_.back() = std::move(pooled.value());
    }
    for (const Mlp& mlp : parts[p].experts()) {
      Result<ExpertStatistics> lengths = ExpertStatistics::create(hidden, mlp.width(), false);
      if (!lengths.is_ok()) return lengths.status();
      made->lengths_.push_back(std::move(lengths.value()));
      if (!request.gram || static_cast<int64_t>(made->summed_.size()) >= request.together) continue;
      Result<ExpertStatistics> summed = ExpertStatistics::create(hidden, mlp.width(), true);
      if (!summed.is_ok()) return summed.status();
      made->summed_.push_back(std::move(summed.value()));
    }
  }
  if (request.gram && made->summed_.size() < made->lengths_.size()) {
    Result<HiddenFile> inputs = HiddenFile::create_temporary(request.scratch, hidden);
    if (!inputs.is_ok()) return inputs.status();
    made->inputs_.emplace(std::move(inputs.value()));
    made->routed_.resize(made->lengths_.size());
  }
  return made;
}

void LayerStatistics::on_routing(const RoutingBatch& batch) {
  if (batch.part == first_routed_) {
    first_token_ = tokens_;
    tokens_ += batch.tokens;
    if (inputs_ && status_.is_ok()) status_ = inputs_->write(first_token_, batch.tokens, batch.input);
  }
  std::optional<SiteStatistics>& pooled = pooled_[static_cast<size_t>(batch.part)];
  if (!pooled) return;
  // Σ over experts of g²·x·xᵀ is that of one token with the weight √Σg².
  std::vector<float> weights(static_cast<size_t>(batch.tokens));
  for (int64_t t = 0; t < batch.tokens; ++t) {
    double squares = 0;
    for (int64_t i = t * batch.top_k; i < (t + 1) * batch.top_k; ++i) {
      const double gate = request_.router_weighted ? static_cast<double>(batch.gates[i]) : 1;
      if (batch.chosen[i] >= 0) squares += gate * gate;
    }
    weights[static_cast<size_t>(t)] = static_cast<float>(std::sqrt(squares));
  }
  pooled->add(compute_.pool, batch.input, batch.tokens, batch.hidden, weights.data());
}

void LayerStatistics::add(ExpertStatistics& statistics, const ExpertBatch& batch) const {
  const float* gates = request_.router_weighted ? batch.gates : nullptr;
  statistics.input.add(compute_.pool, batch.input, batch.rows, batch.hidden, gates);
  statistics.activation.add(compute_.pool, batch.activation, batch.rows, batch.width, gates);
}

void LayerStatistics::on_expert(const ExpertBatch& batch) {
  const size_t at = number(batch.part, batch.expert);
  add(lengths_[at], batch);
  if (at < summed_.size()) {
    add(summed_[at], batch);
  } else if (inputs_) {
    Routed& routed = routed_[at];
    for (int64_t r = 0; r < batch.rows; ++r) routed.tokens.push_back(first_token_ + batch.tokens[r]);
    routed.gates.insert(routed.gates.end(), batch.gates, batch.gates + batch.rows);
  }
}

const SiteStatistics* LayerStatistics::pooled(int part) {
  std::optional<SiteStatistics>& pooled = pooled_[static_cast<size_t>(part)];
  if (!pooled) return nullptr;
  pooled->finish(compute_.pool);
  return &*pooled;
}

Result<ExpertStatistics> LayerStatistics::take(int part, int expert) {
  const size_t at = number(part, expert);
  if (!request_.gram) return std::move(lengths_[at]);
  if (at < summed_.size()) return std::move(summed_[at]);
  return gather(parts_[static_cast<size_t>(part)].experts()[static_cast<size_t>(expert)], routed_[at]);
}

Result<ExpertStatistics> LayerStatistics::gather(const Mlp& mlp, const Routed& routed) const {
  Result<ExpertStatistics> made = ExpertStatistics::create(hidden_, mlp.width(), true);
  if (!made.is_ok()) return made;
  AlignedBuffer<float> inputs;
  AlignedBuffer<float> activations;
  const auto total = static_cast<int64_t>(routed.tokens.size());
  for (int64_t begin = 0; begin < total; begin += kGatheredTokens) {
    const int64_t rows = std::min(kGatheredTokens, total - begin);
    inputs.ensure(static_cast<size_t>(rows * hidden_));
    activations.ensure(static_cast<size_t>(rows * mlp.width()));
    if (inputs.data() == nullptr || activations.data() == nullptr) {
      return Status(Code::kOutOfMemory, "no memory for what an expert reads: free memory and run again");
    }
    for (int64_t r = 0; r < rows; ++r) {
      ESPALIER_TRY(inputs_->read(routed.tokens[static_cast<size_t>(begin + r)], 1, inputs.data() + r * hidden_));
    }
    const Product product{&mlp.gate, inputs.data(), hidden_, rows, activations.data(), mlp.width(), &mlp.up};
    multiply(compute_, std::span(&product, 1));
    add(made.value(), {.rows = rows,
                       .hidden = hidden_,
                       .width = mlp.width(),
                       .input = inputs.data(),
                       .gates = routed.gates.data() + begin,
                       .activation = activations.data()});
  }
  return made;
}

}  // namespace espalier
