// The engine on the CPU's kernels.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/decoder_layer.h"
#include "engine/engine.h"

namespace espalier {

class CpuEngine final : public Engine {
 public:
  static Result<std::unique_ptr<Engine>> load(const ModelSpec& spec, const EngineOptions& options,
                                              const LoadProgress& progress, const std::atomic<bool>* cancel);

  Result<StepResult> step(const StepRequest& request, const std::atomic<bool>* cancel) override;

 private:
  CpuEngine() = default;
  void collect_info();
  void embed(const std::vector<int32_t>& tokens);
  StepResult answer_all(const StepRequest& request);

  std::mutex mutex_;
  std::shared_ptr<ThreadPool> pool_;
  int64_t hidden_ = 0;
  StepLimits limits_;
  Activations activations_ = Activations::kFloat32;
  float norm_epsilon_ = 0;
  RopeSpec rope_;
  std::optional<HostMatrix> embedding_;
  std::vector<float> final_norm_;
  Linear head_;
  std::vector<DecoderLayer> layers_;
  std::vector<KvLayer> cache_;
  AlignedBuffer<float> hidden_states_, last_, logits_;
};

}  // namespace espalier
