// What a decoder layer runs on over the calibration set: the CPU, or a GPU that gathers statistics where it computes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/decoder_layer.h"
#include "prune/expert_weights.h"
#include "prune/prune_matrix.h"
#include "prune/statistics.h"
#include "prune/survey_sums.h"

namespace espalier {

struct StatisticsRequest {
  bool gram = false;             // Gram matrices beside the lengths of columns
  bool pooled = false;           // with gram: also that of what all experts of a part read
  bool router_weighted = false;  // weight each token's input by its gate
  // On the CPU, with gram: so many of the layer's first experts have theirs summed while the layer runs. What the
  // others read is kept in a temporary file at `scratch`, and their Gram matrices are made from it one expert at a
  // time. On a GPU all are summed there.
  int64_t together = 0;
  std::string scratch;
};

// What a run over the calibration set told of the experts of a layer. Gives out each expert's statistics once, in any
// order.
class GatheredStatistics {
 public:
  virtual ~GatheredStatistics() = default;
  // To be called once, after the run and before the others: whether all that was seen could be kept.
  virtual Status finish() = 0;
  // Of an expert that was not taken yet, without Gram matrices.
  virtual const ExpertStatistics& lengths(int part, int expert) const = 0;
  // What all experts of a part read, each token as often as it was read; null where that was not asked for.
  virtual const SiteStatistics* pooled(int part) = 0;
  // Whether prepare() is to be called for the experts in the place of take().
  virtual bool prepares(const MethodPlan&) const { return false; }
  // The site that a matrix reads, prepared where its statistics are, which are forgotten. Of each site once; the last
  // one before is not used any more. As prepare_site has it, and the errors of the device.
  virtual Result<PreparedSite> prepare(const MethodPlan&, const MatrixId&) {
    return Status(Code::kInternal, "statistics on the CPU are prepared by prepare_site");
  }
  // The expert's weights must still be those of the run.
  virtual Result<ExpertStatistics> take(int part, int expert) = 0;
};

// What a run over the calibration set told of the experts, for deciding which of them to keep.
class LayerSurvey {
 public:
  virtual ~LayerSurvey() = default;
  // To be called once, after the run: one for each part; those of dense parts are empty. The errors of the device.
  virtual Result<std::vector<PartSurvey>> finish() = 0;
};

// Who sees what the experts do: one of these, or none. The first two are of the runner's own collect() and survey().
struct Watchers {
  GatheredStatistics* statistics = nullptr;
  LayerSurvey* survey = nullptr;
  Observer* observer = nullptr;
};

class LayerRunner {
 public:
  virtual ~LayerRunner() = default;
  // Memory for the hidden states of so many rows, from which forward() is fast; until the next call. kOutOfMemory.
  virtual Result<float*> states(int64_t rows) = 0;
  // For forwards of this runner that follow. kOutOfMemory; kIo and kNoSpace for files.
  virtual Result<std::unique_ptr<GatheredStatistics>> collect(const StatisticsRequest& request) = 0;
  // Likewise. kUsage as SurveySums has it; kOutOfMemory.
  virtual Result<std::unique_ptr<LayerSurvey>> survey(const SurveyOptions& options) = 0;
  // Advances `states` [batch.rows][hidden], some rows of states(), by the layer.
  virtual Status forward(const Batch& batch, float* states, const Watchers& watchers) = 0;
  // What chooses masks in the place of the CPU; null where that is the CPU. Belongs to this.
  virtual MatrixMasks* masks() { return nullptr; }
  // Does ahead what the next forward() would begin with, where there is memory for it.
  virtual Status prepare() { return Status::ok(); }
  // The layer is not what it was at the last forward: other weights, experts or routers.
  virtual void layer_changed() = 0;
};

// All but `layer` as the checkpoint has it.
struct RunnableLayer {
  ThreadPool& pool;
  const LayerSpec& spec;
  const RopeSpec& rope;
  int64_t hidden;
  float norm_epsilon;
  DecoderLayer& layer;
};

// All references of `layer` must outlive it.
std::unique_ptr<LayerRunner> make_cpu_runner(const RunnableLayer& layer);

}  // namespace espalier
