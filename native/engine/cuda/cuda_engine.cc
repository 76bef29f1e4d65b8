#include "engine/cuda/cuda_engine.h"

#include <algorithm>
#include <mutex>
#include <set>

#include "engine/cuda/model_engine.h"
#include "engine/cuda/placement.h"
#include "engine/cuda/stage.h"
#include "engine/cuda/step_lists.h"
#include "kernels/cuda/device.h"

namespace espalier::cuda {
namespace {

// Rows up to which a step is captured as a graph: those of larger ones run long enough to hide their launches.
constexpr int kMostGraphRows = 64;

// What an answer is made of.
enum class Need { kLogits, kLikeliest, kScore };

Need need_of(const StepRequest& request, size_t index) {
  const size_t first_sample = request.logits.size();
  const size_t first_score = first_sample + request.samples.size();
  if (index < first_sample) return Need::kLogits;
  if (index >= first_score) return request.scores[index - first_score].top > 0 ? Need::kLogits : Need::kScore;
  const SampleRequest& wish = request.samples[index - first_sample];
  const bool is_greedy = wish.options.temperature <= 0 && wish.rules.change_nothing() && !wish.top;
  return is_greedy ? Need::kLikeliest : Need::kLogits;
}

class CudaEngine final : public Engine {
 public:
  CudaEngine(std::shared_ptr<ThreadPool> pool, const StepLimits& limits, std::vector<std::unique_ptr<Stage>> stages)
      : pool_(std::move(pool)), limits_(limits), stages_(std::move(stages)) {
    collect_info();
  }

  Result<StepResult> step(const StepRequest& request, const std::atomic<bool>* cancel) override {
    ESPALIER_TRY(check_step(request, limits_));
    const std::lock_guard lock(mutex_);
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return Status(Code::kAborted, "stopped");
    StepResult result = empty_result(request, limits_.vocabulary);
    const Status ran = run(request, result);
    if (ran.is_ok()) return result;
    // Nothing of a step that failed may still read the lists of the next. What failed has been told.
    for (const auto& stage : stages_) static_cast<void>(stage->wait());
    return ran;
  }

 private:
  Status run(const StepRequest& request, StepResult& result) {
    if (request.batch.rows == 0) return Status::ok();
    const std::vector<int32_t> answered = answered_rows(request);
    const StepLists lists(request, answered);
    const auto rows = static_cast<int>(request.batch.rows);
    ESPALIER_TRY(make_room(rows, lists));
    lists.write(host_lists_.as<int32_t>());
    const auto count = static_cast<int>(answered.size());
    Chunk chunk = chunk_of(request, 0, std::min(count, kMostLogitRows));
    Stage& last = *stages_.back();
    const auto head = [&] {
      return last.forward().run_head({.count = chunk.count,
                                      .rows = lists.picks_of(last.lists()) + chunk.first,
                                      .targets = chunk.scores ? lists.targets_of(last.lists()) + chunk.first : nullptr,
                                      .wants_likeliest = chunk.likeliest},
                                     last.stream());
    };
    const KeySplit& split = lists.split();
    const StepShape shape{rows, count, split.splits * split.chunks, 2 * chunk.scores + chunk.likeliest};
    const bool as_graph = rows <= kMostGraphRows && count <= kMostLogitRows;
    const Stage* before = nullptr;
    for (const auto& stage : stages_) {
      const auto layers_and_head = [&]() -> Status {
        ESPALIER_TRY(stage->forward().run(lists.rows_of(stage->lists()), stage->stream()));
        return stage.get() == &last && count > 0 ? head() : Status::ok();
      };
      ESPALIER_TRY(stage->receive(host_lists_.as<void>(), lists.bytes(), before, rows));
      ESPALIER_TRY(stage->run(as_graph ? &shape : nullptr, layers_and_head));
      before = stage.get();
    }
    // Of the last stage, whose device is the current one from here on.
    while (chunk.count > 0) {
      ESPALIER_TRY(take_answers(request, chunk, result));
      const int done = chunk.first + chunk.count;
      chunk = chunk_of(request, done, std::min(count - done, kMostLogitRows));
      if (chunk.count > 0) ESPALIER_TRY(head());
    }
    // Keys and values are there when the step returns, whatever was asked; so are errors, the first stage's first.
    for (const auto& stage : stages_) ESPALIER_TRY(stage->wait());
    return Status::ok();
  }

  Status make_room(int rows, const StepLists& lists) {
    if (lists.bytes() > host_lists_.bytes()) ESPALIER_TRY(host_lists_.ensure(2 * lists.bytes()));
    for (const auto& stage : stages_) ESPALIER_TRY(stage->make_room(rows, lists.split().splits, lists.bytes()));
    return Status::ok();
  }

  // Answers of a step that are taken together, and what some of them need.
  struct Chunk {
    int first = 0;
    int count = 0;
    bool logits = false;
    bool likeliest = false;
    bool scores = false;
  };
  static Chunk chunk_of(const StepRequest& request, int first, int count) {
    Chunk chunk{.first = first, .count = count};
    for (int i = first; i < first + count; ++i) {
      const Need need = need_of(request, static_cast<size_t>(i));
      chunk.logits = chunk.logits || need == Need::kLogits;
      chunk.likeliest = chunk.likeliest || need == Need::kLikeliest;
      chunk.scores = chunk.scores || need == Need::kScore;
    }
    return chunk;
  }

  Status take_answers(const StepRequest& request, const Chunk& chunk, StepResult& result) {
    const Stage& last = *stages_.back();
    const Forward& forward = last.forward();
    const auto vocabulary = static_cast<size_t>(limits_.vocabulary);
    const auto count = static_cast<size_t>(chunk.count);
    const size_t logit_bytes = chunk.logits ? count * vocabulary * sizeof(float) : 0;
    ESPALIER_TRY(host_logits_.ensure(static_cast<int64_t>(logit_bytes)));
    ESPALIER_TRY(host_scores_.ensure(kMostLogitRows * static_cast<int64_t>(sizeof(double))));
    ESPALIER_TRY(host_likeliest_.ensure(kMostLogitRows * static_cast<int64_t>(sizeof(int32_t))));
    ESPALIER_TRY(fetch(host_logits_, forward.logits(), logit_bytes));
    ESPALIER_TRY(fetch(host_scores_, forward.scores(), chunk.scores ? count * sizeof(double) : 0));
    ESPALIER_TRY(fetch(host_likeliest_, forward.likeliest(), chunk.likeliest ? count * sizeof(int32_t) : 0));
    ESPALIER_TRY(last.wait());
    const size_t first_sample = request.logits.size();
    const size_t first_score = first_sample + request.samples.size();
    pool_->parallel_for(chunk.count, 1, [&](int64_t i, int64_t) {
      const size_t index = static_cast<size_t>(chunk.first + i);
      switch (need_of(request, index)) {
        case Need::kLikeliest: result.samples[index - first_sample] = host_likeliest_.as<int32_t>()[i]; break;
        case Need::kScore: result.scores[index - first_score] = host_scores_.as<double>()[i]; break;
        case Need::kLogits:
          answer(request, index, {host_logits_.as<float>() + static_cast<size_t>(i) * vocabulary, vocabulary}, result);
      }
    });
    return Status::ok();
  }

  Status fetch(const PinnedMemory& to, const void* from, size_t bytes) const {
    if (bytes == 0) return Status::ok();
    return to_status(cudaMemcpyAsync(to.as<void>(), from, bytes, cudaMemcpyDeviceToHost, stages_.back()->stream()),
                     "cudaMemcpyAsync");
  }

  void collect_info() {
    std::set<std::string> formats;
    const auto add = [&](int64_t bytes, int64_t active) {
      info_.weight_bytes += bytes;
      info_.active_bytes += active;
    };
    for (const auto& stage : stages_) {
      const Model& model = stage->model();
      const int64_t before = info_.weight_bytes;
      add(model.head.bytes(), model.head.bytes());
      for (const Layer& layer : model.layers) {
        const int64_t attention = layer.qkv.bytes() + layer.output.bytes();
        add(attention, attention);
        info_.kv_bytes += layer.keys.bytes() + layer.values.bytes();
        for (const FeedForwardPart& part : layer.feed_forward) {
          const int64_t experts = part.gate_up.bytes() + part.down.bytes();
          add(part.router.memory.bytes(), part.router.memory.bytes());
          add(experts, part.is_routed ? experts * part.routing.top_k / part.experts : experts);
          if (!part.is_routed) continue;
          info_.expert_bytes += experts;
          formats.insert({part.gate_up.format(), part.down.format()});
        }
      }
      info_.gpus.push_back({stage->device(), static_cast<int>(model.layers.size()), info_.weight_bytes - before});
    }
    info_.formats.assign(formats.begin(), formats.end());
  }

  std::mutex mutex_;
  std::shared_ptr<ThreadPool> pool_;
  StepLimits limits_;
  std::vector<std::unique_ptr<Stage>> stages_;
  PinnedMemory host_lists_, host_logits_, host_scores_, host_likeliest_;
};

}  // namespace

Result<std::unique_ptr<Engine>> make_engine(std::shared_ptr<ThreadPool> pool, const StepLimits& limits,
                                            std::vector<StageModel> placed) {
  std::vector<std::unique_ptr<Stage>> stages;
  for (StageModel& part : placed) {
    Result<std::unique_ptr<Stage>> stage = Stage::create(std::move(part));
    if (!stage.is_ok()) return stage.status();
    if (!stages.empty()) stage.value()->read_directly(*stages.back());
    stages.push_back(std::move(stage.value()));
  }
  return std::unique_ptr<Engine>(std::make_unique<CudaEngine>(std::move(pool), limits, std::move(stages)));
}

Result<std::unique_ptr<Engine>> load_engine(const ModelSpec& spec, const EngineOptions& options,
                                            const LoadProgress& progress, const std::atomic<bool>* cancel) {
  const Result<std::vector<int>> devices = choose_devices(*options.gpus);
  if (!devices.is_ok()) return devices.status();
  std::shared_ptr<ThreadPool> pool = ThreadPool::shared(options.threads);
  Result<std::vector<StageModel>> stages = place_model(*pool, spec, options, devices.value(), progress, cancel);
  if (!stages.is_ok()) return stages.status();
  const StepLimits limits{spec.vocabulary_size, spec.max_positions, options.kv_blocks};
  return make_engine(std::move(pool), limits, std::move(stages.value()));
}

}  // namespace espalier::cuda
