#include "prune/expert_survey.h"
#include "prune/layer_runner.h"
#include "prune/layer_statistics.h"

namespace espalier {
namespace {

class CpuLayerRunner final : public LayerRunner {
 public:
  explicit CpuLayerRunner(const RunnableLayer& layer) : layer_(layer), compute_{layer.pool, cpu_kernels()} {}

  Result<float*> states(int64_t rows) override {
    states_.ensure(static_cast<size_t>(rows * layer_.hidden));
    if (states_.data() == nullptr) {
      return Status(Code::kOutOfMemory, "no memory for the hidden states of " + std::to_string(rows) + " tokens");
    }
    return states_.data();
  }

  Result<std::unique_ptr<GatheredStatistics>> collect(const StatisticsRequest& request) override {
    Result<std::unique_ptr<LayerStatistics>> made =
        LayerStatistics::create(compute_, layer_.layer.feed_forward(), layer_.hidden, request);
    if (!made.is_ok()) return made.status();
    return std::unique_ptr<GatheredStatistics>(std::move(made.value()));
  }

  Result<std::unique_ptr<LayerSurvey>> survey(const SurveyOptions& options) override {
    return ExpertSurvey::create(compute_, layer_.layer.feed_forward(), options);
  }

  Status forward(const Batch& batch, float* states, const Watchers& watchers) override {
    const Attention& attention = layer_.layer.attention();
    int64_t blocks = 0;
    for (const Slice& slice : batch.slices) blocks += static_cast<int64_t>(slice.blocks.size());
    if (blocks > cache_blocks_) {
      if (!cache_.allocate(blocks, attention.kv_heads(), attention.head_dim())) {
        return {Code::kOutOfMemory, "not enough memory for the keys and values of a sequence"};
      }
      cache_blocks_ = blocks;
    }
    auto* statistics = static_cast<LayerStatistics*>(watchers.statistics);
    Observer* observer = watchers.observer;
    if (statistics != nullptr) observer = statistics;
    if (watchers.survey != nullptr) observer = static_cast<ExpertSurvey*>(watchers.survey);
    layer_.layer.forward(compute_, batch, RopeRows::compute(layer_.rope, batch), layer_.norm_epsilon, cache_,
                         layer_.hidden, states, observer);
    return statistics != nullptr ? statistics->status() : Status::ok();
  }

  void layer_changed() override {}

 private:
  RunnableLayer layer_;
  Compute compute_;
  AlignedBuffer<float> states_;
  KvLayer cache_;
  int64_t cache_blocks_ = 0;
};

}  // namespace

std::unique_ptr<LayerRunner> make_cpu_runner(const RunnableLayer& layer) {
  return std::make_unique<CpuLayerRunner>(layer);
}

}  // namespace espalier
