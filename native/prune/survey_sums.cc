#include "prune/survey_sums.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace espalier {
namespace {

double median_of_strided(const std::vector<float>& values, size_t first, size_t stride) {
  std::vector<float> own;
  for (size_t i = first; i < values.size(); i += stride) own.push_back(values[i]);
  if (own.empty()) return 0;
  const auto middle = own.begin() + static_cast<std::ptrdiff_t>(own.size() / 2);
  std::nth_element(own.begin(), middle, own.end());
  if (own.size() % 2 == 1) return static_cast<double>(*middle);
  const float below = *std::max_element(own.begin(), middle);
  return (static_cast<double>(below) + static_cast<double>(*middle)) / 2;
}

}  // namespace

Result<SurveySums> SurveySums::create(ThreadPool& pool, std::vector<FeedForwardPart>& parts,
                                      const SurveyOptions& options) {
  SurveySums sums(pool, parts, options);
  for (FeedForwardPart& part : parts) {
    PartSurvey& own = sums.surveys_.emplace_back();
    sums.losses_.emplace_back();
    sums.ratios_.emplace_back();
    if (!part.is_routed()) continue;
    own.experts = static_cast<int64_t>(part.experts().size());
    own.top_k = part.routing().top_k;
    const auto n = static_cast<size_t>(own.experts);
    own.family.assign(n * PartSurvey::kFamily, 0.0);
    own.coactivation.assign(n * n, 0.0);
    own.probabilities.assign(n, 0.0);
    if (options.logit_products) own.logit_products.assign(n * n, 0.0);
    if (options.keep == 0) continue;
    Result<KeptSetLosses> losses = KeptSetLosses::create(part.routing(), own.experts, options.keep);
    if (!losses.is_ok()) return losses.status();
    sums.losses_.back().emplace(std::move(losses.value()));
  }
  return sums;
}

void SurveySums::add_routing(const RoutingBatch& batch) {
  PartSurvey& survey = surveys_[static_cast<size_t>(batch.part)];
  const int64_t n = survey.experts;
  survey.tokens += batch.tokens;
  for (int64_t t = 0; t < batch.tokens; ++t) {
    const int32_t* chosen = batch.chosen + t * batch.top_k;
    for (int a = 0; a < batch.top_k; ++a) {
      for (int b = 0; b < batch.top_k; ++b) {
        if (a != b) survey.coactivation[static_cast<size_t>(chosen[a] * n + chosen[b])] += 1;
      }
    }
    const float* gates = batch.gates + t * batch.top_k;
    for (int k = 1; k < batch.top_k; ++k) ratios_[static_cast<size_t>(batch.part)].push_back(gates[k] / gates[0]);
  }
  add_probabilities(batch, survey);
  if (options_.logit_products) {
    pool_->parallel_for(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double* row = survey.logit_products.data() + i * n;
        for (int64_t t = 0; t < batch.tokens; ++t) {
          const float* logits = batch.logits + t * n;
          const double own = logits[i];
          for (int64_t j = 0; j < n; ++j) row[j] += own * static_cast<double>(logits[j]);
        }
      }
    });
  }
}

void SurveySums::add_probabilities(const RoutingBatch& batch, PartSurvey& survey) {
  const int64_t n = survey.experts;
  const bool softmax = (*parts_)[static_cast<size_t>(batch.part)].routing().scoring == Scoring::kSoftmax;
  scratch_.resize(static_cast<size_t>(batch.tokens * n));
  pool_->parallel_for(batch.tokens, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* logits = batch.logits + t * n;
      double* scores = scratch_.data() + t * n;
      const double highest = *std::max_element(logits, logits + n);
      double total = 0;
      for (int64_t e = 0; e < n; ++e) {
        const double logit = logits[e];
        total += scores[e] = softmax ? std::exp(logit - highest) : 1 / (1 + std::exp(-logit));
      }
      for (int64_t e = 0; e < n && softmax; ++e) scores[e] /= total;
    }
  });
  pool_->parallel_for(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      double& sum = survey.probabilities[static_cast<size_t>(e)];
      for (int64_t t = 0; t < batch.tokens; ++t) sum += scratch_[static_cast<size_t>(t * n + e)];
    }
  });
}

void SurveySums::add_norms(int part, int expert, int64_t rows, const float* gates, const double* squares) {
  double* family = surveys_[static_cast<size_t>(part)].family.data() + expert * PartSurvey::kFamily;
  for (int64_t r = 0; r < rows; ++r) {
    const double gate = gates[r];
    const std::array powers = {1.0, gate, gate * gate};
    const std::array norms = {1.0, std::sqrt(squares[r]), squares[r]};
    for (size_t a = 0; a < 3; ++a) {
      for (size_t b = 0; b < 3; ++b) family[3 * a + b] += powers[a] * norms[b];
    }
  }
}

std::vector<PartSurvey> SurveySums::finish() {
  for (size_t p = 0; p < surveys_.size(); ++p) {
    PartSurvey& survey = surveys_[p];
    for (double& mean : survey.mean_outputs) mean /= static_cast<double>(std::max<int64_t>(survey.tokens, 1));
    if (losses_[p]) survey.losses = losses_[p]->losses();
    const auto ranks = static_cast<size_t>(std::max(survey.top_k - 1, 0));
    for (size_t k = 0; k < ranks; ++k) survey.gate_ratios.push_back(median_of_strided(ratios_[p], k, ranks));
  }
  return std::move(surveys_);
}

}  // namespace espalier
