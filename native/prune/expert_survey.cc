#include "prune/expert_survey.h"

#include <algorithm>

namespace espalier {
namespace {

// Tokens whose outputs of all experts are in memory at once.
constexpr int64_t kChunk = 128;

}  // namespace

Result<std::unique_ptr<LayerSurvey>> ExpertSurvey::create(const Compute& compute, std::vector<FeedForwardPart>& parts,
                                                          const SurveyOptions& options) {
  Result<SurveySums> sums = SurveySums::create(compute.pool, parts, options);
  if (!sums.is_ok()) return sums.status();
  return std::unique_ptr<LayerSurvey>(new ExpertSurvey(compute, parts, options, std::move(sums.value())));
}

void ExpertSurvey::on_routing(const RoutingBatch& batch) {
  sums_.add_routing(batch);
  if (options_.mean_outputs) add_outputs(batch);
  if (KeptSetLosses* losses = sums_.losses(batch.part)) add_losses(batch, *losses);
}

void ExpertSurvey::run_expert(Mlp& mlp, const float* x, int64_t rows, int64_t hidden, float* out) {
  const int64_t width = mlp.width();
  activations_.ensure(static_cast<size_t>(rows * width));
  const Product first{&mlp.gate, x, hidden, rows, activations_.data(), width, &mlp.up};
  multiply(compute_, std::span(&first, 1));
  const Product second{&mlp.down, activations_.data(), width, rows, out, hidden};
  multiply(compute_, std::span(&second, 1));
}

void ExpertSurvey::add_outputs(const RoutingBatch& batch) {
  const int64_t hidden = batch.hidden;
  std::vector<Mlp>& experts = parts_[static_cast<size_t>(batch.part)].experts();
  std::vector<double>& all_sums = sums_.output_sums(batch.part);
  all_sums.resize(experts.size() * static_cast<size_t>(hidden), 0.0);
  outputs_.ensure(static_cast<size_t>(batch.tokens * hidden));
  for (size_t e = 0; e < experts.size(); ++e) {
    run_expert(experts[e], batch.input, batch.tokens, hidden, outputs_.data());
    double* sums = all_sums.data() + e * static_cast<size_t>(hidden);
    compute_.pool.parallel_for(hidden, 64, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < batch.tokens; ++t) {
        const float* row = outputs_.data() + t * hidden;
        for (int64_t h = begin; h < end; ++h) sums[h] += static_cast<double>(row[h]);
      }
    });
  }
}

void ExpertSurvey::add_losses(const RoutingBatch& batch, KeptSetLosses& losses) {
  std::vector<Mlp>& experts = parts_[static_cast<size_t>(batch.part)].experts();
  const auto n = static_cast<int64_t>(experts.size());
  outputs_.ensure(static_cast<size_t>(n * std::min(kChunk, batch.tokens) * batch.hidden));
  for (int64_t begin = 0; begin < batch.tokens; begin += kChunk) {
    const int64_t count = std::min(kChunk, batch.tokens - begin);
    for (int64_t e = 0; e < n; ++e) {
      run_expert(experts[static_cast<size_t>(e)], batch.input + begin * batch.hidden, count, batch.hidden,
                 outputs_.data() + e * count * batch.hidden);
    }
    scratch_.resize(static_cast<size_t>(count * n * n));
    output_grams(compute_.pool, outputs_.data(), n, count, batch.hidden, scratch_.data());
    losses.add(compute_.pool, batch.logits + begin * n, scratch_.data(), count);
  }
  losses.end_batch();
}

void ExpertSurvey::on_expert(const ExpertBatch& batch) {
  scratch_.resize(static_cast<size_t>(batch.rows));
  compute_.pool.parallel_for(batch.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = batch.output + r * batch.hidden;
      double square = 0;
      for (int64_t h = 0; h < batch.hidden; ++h) square += static_cast<double>(row[h]) * static_cast<double>(row[h]);
      scratch_[static_cast<size_t>(r)] = square;
    }
  });
  sums_.add_norms(batch.part, batch.expert, batch.rows, batch.gates, scratch_.data());
}

}  // namespace espalier
