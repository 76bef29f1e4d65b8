// What a run over the calibration set tells of the experts of a layer, with the Gram matrices of few experts in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/feed_forward.h"
#include "prune/hidden_file.h"
#include "prune/statistics.h"

namespace espalier {

struct StatisticsRequest {
  bool gram = false;             // Gram matrices beside the lengths of columns
  bool pooled = false;           // with gram: also that of what all experts of a part read
  bool router_weighted = false;  // weight each token's input by its gate
  // With gram: so many of the layer's first experts have theirs summed while the layer runs. What the others read is
  // kept in a temporary file at `scratch`, and their Gram matrices are made from it one expert at a time.
  int64_t together = 0;
  std::string scratch;
};

// Observes one run of the layer; then gives out each expert's statistics once, in any order. They have the same bytes
// whatever `together` is.
class LayerStatistics final : public Observer {
 public:
  // `parts` must outlive it. kOutOfMemory; kIo and kNoSpace for the file.
  static Result<std::unique_ptr<LayerStatistics>> create(const Compute& compute, std::vector<FeedForwardPart>& parts,
                                                         int64_t hidden, const StatisticsRequest& request);

  void on_routing(const RoutingBatch& batch) override;
  void on_expert(const ExpertBatch& batch) override;
  // After the run: whether all that was seen could be kept.
  const Status& status() const { return status_; }

  // Of an expert that was not taken yet, without Gram matrices.
  const ExpertStatistics& lengths(int part, int expert) const { return lengths_[number(part, expert)]; }
  // What all experts of a part read, each token as often as it was read; null where that was not asked for.
  const SiteStatistics* pooled(int part);
  // The expert's weights must still be those of the run.
  Result<ExpertStatistics> take(int part, int expert);

 private:
  // The tokens that reached an expert, and their gates.
  struct Routed {
    std::vector<int64_t> tokens;
    std::vector<float> gates;
  };

  LayerStatistics(const Compute& compute, std::vector<FeedForwardPart>& parts, int64_t hidden,
                  const StatisticsRequest& request)
      : compute_(compute), parts_(parts), hidden_(hidden), request_(request) {}
  size_t number(int part, int expert) const {
    return first_expert_[static_cast<size_t>(part)] + static_cast<size_t>(expert);
  }
  void add(ExpertStatistics& statistics, const ExpertBatch& batch) const;
  Result<ExpertStatistics> gather(const Mlp& mlp, const Routed& routed) const;

  Compute compute_;
  std::vector<FeedForwardPart>& parts_;
  int64_t hidden_;
  StatisticsRequest request_;
  std::vector<size_t> first_expert_;       // of each part
  std::vector<ExpertStatistics> lengths_;  // of every expert
  std::vector<ExpertStatistics> summed_;   // of the first `together`
  std::vector<Routed> routed_;             // of every expert, where some are not summed
  std::vector<std::optional<SiteStatistics>> pooled_;
  std::optional<HiddenFile> inputs_;  // what experts read, a row for each token
  int first_routed_ = -1;             // part; all parts read the same
  int64_t first_token_ = 0;           // of the batch
  int64_t tokens_ = 0;
  Status status_;
};

}  // namespace espalier
