// What a dense run over the calibration set tells about the experts of a layer, for deciding which of them to keep, and
// the sums of it that are the same wherever the layer runs.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/feed_forward.h"
#include "prune/naee.h"

namespace espalier {

struct SurveyOptions {
  bool logit_products = false;  // Σ l_i·l_j of the router's logits
  bool mean_outputs = false;    // the mean output of every expert over all tokens: runs every expert on every token
  int keep = 0;                 // losses of all sets of so many experts (naee.h): runs every expert on every token
};

// One routed part. Sums are over the calibration tokens, accumulated in float64 in the order of the tokens.
struct PartSurvey {
  // Powers 0, 1, 2 of gate and of ‖output‖: family[expert·9 + 3·α + β] = Σ g^α·‖f‖^β over the tokens of an expert,
  // from which S(b, α, β) = family / |X|^b; α = β = 0 counts its tokens.
  static constexpr int kFamily = 9;

  int64_t tokens = 0;
  int top_k = 0;
  int64_t experts = 0;
  std::vector<double> family;
  std::vector<double> coactivation;    // [experts][experts]: tokens that chose both; 0 on the diagonal
  std::vector<double> probabilities;   // [experts]: Σ of the router's score of it, over all tokens
  std::vector<double> logit_products;  // [experts][experts], or empty
  std::vector<double> mean_outputs;    // [experts][hidden], or empty
  std::vector<double> losses;          // of every kept set, in lexicographic order, or empty
  // [top_k − 1]: the median over tokens of the gate of the second, third, … chosen expert over that of the first (Lu et
  // al. 2024, arXiv 2402.14800, section 3.3).
  std::vector<double> gate_ratios;
};

// Of one layer whose router rows lead to experts of the same number. What experts give comes in as few numbers a token.
class SurveySums {
 public:
  // kUsage where `keep` does not fit a part or leaves too many sets. `parts` must outlive it.
  static Result<SurveySums> create(ThreadPool& pool, std::vector<FeedForwardPart>& parts, const SurveyOptions& options);

  // Reads neither the input nor the experts' outputs.
  void add_routing(const RoutingBatch& batch);
  // Tokens of an expert, by their gates and ‖output‖².
  void add_norms(int part, int expert, int64_t rows, const float* gates, const double* squares);
  // Σ of every expert's output over all tokens, [experts][hidden], for whoever runs them on all to fill.
  std::vector<double>& output_sums(int part) { return surveys_[static_cast<size_t>(part)].mean_outputs; }
  // Null where they are not asked for.
  KeptSetLosses* losses(int part) {
    std::optional<KeptSetLosses>& losses = losses_[static_cast<size_t>(part)];
    return losses ? &*losses : nullptr;
  }

  // One for each part; those of dense parts are empty.
  std::vector<PartSurvey> finish();

 private:
  SurveySums(ThreadPool& pool, std::vector<FeedForwardPart>& parts, const SurveyOptions& options)
      : pool_(&pool), parts_(&parts), options_(options) {}
  void add_probabilities(const RoutingBatch& batch, PartSurvey& survey);

  ThreadPool* pool_;
  std::vector<FeedForwardPart>* parts_;
  SurveyOptions options_;
  std::vector<PartSurvey> surveys_;
  std::vector<std::optional<KeptSetLosses>> losses_;
  std::vector<std::vector<float>> ratios_;  // [part][token · (top_k − 1)]
  std::vector<double> scratch_;
};

}  // namespace espalier
