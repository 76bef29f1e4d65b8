// One decoder layer in memory: run over the calibration set with statistics, pruned expert by expert, run again.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/decoder_layer.h"
#include "prune/expert_weights.h"
#include "prune/layer_runner.h"
#include "prune/merge_experts.h"
#include "prune/moments.h"
#include "prune/prune_matrix.h"
#include "prune/recover.h"

namespace espalier {

struct ForwardRequest {
  std::string input;                         // HiddenFile
  std::string output;                        // HiddenFile to write; empty: none
  std::vector<int64_t> lengths;              // tokens of each sequence, in file order
  int64_t first_input = 0;                   // rows of the files where the sequences begin
  int64_t first_output = 0;                  // what else `output` holds is left
  std::optional<StatisticsRequest> collect;  // statistics, replacing earlier ones
};

struct ExpertMatrixReport {
  MatrixId id;
  int64_t tokens = 0;    // calibration tokens that reached the expert
  bool skipped = false;  // holds NaN or infinity and was left as it is
  MatrixReport matrix;
};

struct RecoverLayerRequest {
  std::string input;             // HiddenFile
  std::vector<int64_t> lengths;  // tokens of each sequence, in file order
  std::string dense;             // HiddenFile: the layer's output in the dense model, from row `first_dense` on
  int64_t first_dense = 0;
  std::string scratch;         // temporary files lie here, with endings of their own
  WeightRef final_norm, head;  // of the model, if this is its last layer: compares next-token distributions then
  RecoverOptions options;      // `gradual` counts where the zeros are unstructured
};

struct ExpertRecoverReport {
  int part = 0;
  int expert = 0;
  int64_t tokens = 0;    // calibration tokens that reached it
  bool trained = false;  // false: too few tokens, or inputs that are not finite
  RecoverReport report;  // of the experts that were trained together
};

struct ExpertMatrixMoments {
  MatrixId id;
  WeightMoments moments;
};

// What becomes of a part's experts and router; see lib/prune/experts/plan.ts.
struct RestructurePlan {
  std::vector<std::vector<ExpertMember>> experts;
  std::vector<int32_t> expert_of_row;
  bool align = false;
  int top_k = 1;
  std::vector<uint8_t> router;         // [rows, hidden] in the element type of the router
  std::vector<float> correction_bias;  // [rows], or empty
};

inline Status check_cancelled(const std::atomic<bool>* cancel) {
  if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return {Code::kAborted, "stopped"};
  return Status::ok();
}

// An expert's matrix as the layer runs it.
Linear& linear_of(Mlp& mlp, Role role);

// The stages of a recipe change the layer one after the other; each starts from what the one before left.
class LayerPruner {
 public:
  using Progress = std::function<void(int64_t done, int64_t total)>;

  // kNonFinite, with the tensor's name, if a weight of the layer is NaN or infinite and `allow_nonfinite` is false.
  // With `gpu` the layer runs there: kDevice, kUsage and kOutOfMemory as make_layer_runner has them.
  static Result<std::unique_ptr<LayerPruner>> load(int threads, const LayerSpec& spec, const RopeSpec& rope,
                                                   int64_t hidden, float norm_epsilon, bool allow_nonfinite,
                                                   std::optional<int> gpu = std::nullopt);

  // Does ahead what the first forward() would begin with: on a GPU, uploads. Another layer may run meanwhile.
  Status prepare() { return runner_->prepare(); }

  // Runs the layer over every sequence. `progress` counts tokens.
  Status forward(const ForwardRequest& request, const Progress& progress, const std::atomic<bool>* cancel) {
    return forward(request, nullptr, progress, cancel);
  }

  // The same, surveying the routed experts; one survey for each part. The request must collect nothing.
  Result<std::vector<PartSurvey>> survey(const ForwardRequest& request, const SurveyOptions& options,
                                         const Progress& progress, const std::atomic<bool>* cancel);

  // Puts the plan's experts and router in the place of a part's; statistics that were gathered are forgotten. kUsage
  // where the plan does not fit the part.
  Status restructure(int part, const RestructurePlan& plan, const std::atomic<bool>* cancel);

  // Prunes every expert matrix by the statistics of the last collecting forward; the layer then runs with the pruned
  // weights, rounded as they will be stored, and the statistics are forgotten. `progress` counts matrices.
  Result<std::vector<ExpertMatrixReport>> prune(const MethodPlan& plan, const Progress& progress,
                                                const std::atomic<bool>* cancel);

  // Trains what the stages before left of the experts (recover.h) until the layer gives what its dense experts give on
  // the same input, and half of what is lacking then of the dense model's output; all of it in the last layer, so that
  // they make up for what earlier layers lost. Runs the layer over every sequence first. The loss is Σ ‖missing‖² as a
  // part of Σ ‖dense‖², or nats a token in the last layer. An expert that fewer tokens reached than it has inputs stays
  // as it is, and the others make up for it.
  Result<std::vector<ExpertRecoverReport>> recover(const RecoverLayerRequest& request, const Progress& progress,
                                                   const std::atomic<bool>* cancel);

  // The share of all expert weights of the layer whose |W_ij| · ‖X_j‖, by the statistics of the last collecting
  // forward, is above `multiple` times their mean (OWL, arXiv 2310.05175). 0 for a layer without experts or statistics.
  Result<double> outlier_share(double multiple, const std::atomic<bool>* cancel);

  // Zeros and kurtosis of every expert matrix as it is now.
  Result<std::vector<ExpertMatrixMoments>> measure(const std::atomic<bool>* cancel);

  // An expert matrix as it is now, in the element type of the checkpoint, row-major. Valid until the next call of a
  // function of this.
  Result<std::span<const uint8_t>> tensor(const MatrixId& id);

 private:
  explicit LayerPruner(const LayerSpec& spec) : spec_(spec), weights_(spec.feed_forward) {}
  // Where the request collects nothing, `survey` (may be null) watches.
  Status forward(const ForwardRequest& request, LayerSurvey* survey, const Progress& progress,
                 const std::atomic<bool>* cancel);
  // Runs the layer over every sequence of `input`, some at a time; `visit` sees each batch's rows of the output, which
  // stay as they are until it has seen the next.
  using Visit = std::function<Status(int64_t first, int64_t rows, const float* states)>;
  Status run(const std::string& input, int64_t first_input, const std::vector<int64_t>& lengths,
             const Watchers& watchers, const Visit& visit, const Progress& progress, const std::atomic<bool>* cancel);

  // The matrix that the layer runs.
  Linear& linear(const MatrixId& id) {
    return linear_of(layer_.feed_forward()[static_cast<size_t>(id.part)].experts()[static_cast<size_t>(id.expert)],
                     id.role);
  }
  std::vector<float> current(const MatrixId& id);
  // The same in memory that is kept from matrix to matrix: fresh memory costs more time than what fills it.
  void current(const MatrixId& id, std::vector<float>& out);
  // |W_ij| · ‖X_j‖ of a matrix; 0 where it is not finite.
  std::vector<float> activation_scores(const GatheredStatistics& statistics, const MatrixId& id);
  // Of the matrices of one role, one an expert: what each loses under the plan.
  Result<std::vector<double>> sparsities(const MethodPlan& plan, const GatheredStatistics* statistics, int part,
                                         Role role);
  // A site that the matrix reads; where it could not be prepared, one without statistics if the layer may hold NaN.
  Result<PreparedSite> settle(Result<PreparedSite> prepared, const MatrixId& id) const;
  // Puts an expert's inner channels, and the statistics of its activation (may be null), in the order that keeps most
  // of the plan's scores of its down projection.
  Status permute_channels(const MethodPlan& plan, SiteStatistics* activation, int part, int expert,
                          const std::atomic<bool>* cancel);
  Status prune_one(const MethodPlan& plan, const PreparedSite& site, std::vector<float>& values,
                   ExpertMatrixReport& report);
  Status check(int part, const RestructurePlan& plan) const;
  Result<Linear> pack(const WeightRef& ref, const std::vector<float>& values) const;
  ExpertValues expert_values(int part, int32_t expert);
  // The layer runs with `values`, rounded as they will be stored, from now on.
  Status replace(const MatrixId& id, std::vector<float>& values);

  std::shared_ptr<ThreadPool> pool_;
  LayerSpec spec_;
  RopeSpec rope_;
  int64_t hidden_ = 0;
  float norm_epsilon_ = 0;
  bool allow_nonfinite_ = false;
  DecoderLayer layer_;
  std::unique_ptr<LayerRunner> runner_;  // of layer_
  ExpertWeights weights_;
  bool grouped_zeros_ = false;                      // the last prune() chose n of every m
  std::unique_ptr<GatheredStatistics> statistics_;  // of the last collecting forward, until they are used
  std::optional<MatrixId> stored_id_;               // what stored_ is
  std::vector<uint8_t> stored_;
  std::vector<float> values_;  // of it
};

// Writes the embeddings of `tokens` as a HiddenFile.
Status write_embeddings(const WeightRef& embedding, const std::vector<int32_t>& tokens, const std::string& path);

}  // namespace espalier
