// What a run over the calibration set tells of the experts of a layer, with the Gram matrices of few experts in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/feed_forward.h"
#include "prune/hidden_file.h"
#include "prune/layer_runner.h"

namespace espalier {

// Observes one run of the layer. Statistics have the same bytes whatever `together` is.
class LayerStatistics final : public Observer, public GatheredStatistics {
 public:
  // `parts` must outlive it. kOutOfMemory; kIo and kNoSpace for the file.
  static Result<std::unique_ptr<LayerStatistics>> create(const Compute& compute, std::vector<FeedForwardPart>& parts,
                                                         int64_t hidden, const StatisticsRequest& request);

  void on_routing(const RoutingBatch& batch) override;
  void on_expert(const ExpertBatch& batch) override;
  // Whether all that was seen could be kept.
  const Status& status() const { return status_; }

  Status finish() override { return status_; }
  const ExpertStatistics& lengths(int part, int expert) const override { return lengths_[number(part, expert)]; }
  const SiteStatistics* pooled(int part) override;
  Result<ExpertStatistics> take(int part, int expert) override;

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
