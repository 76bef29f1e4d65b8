// A model ready to run. Its one entry is the batch step.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/inputs.h"
#include "engine/spec.h"
#include "engine/step.h"
#include "engine/weight_policy.h"

namespace espalier {

struct EngineOptions {
  // Numbers of CUDA devices, of which it runs on the first ones that have room for it; of an empty list on all that
  // there are; without one, on the CPU.
  std::optional<std::vector<int>> gpus;
  int threads = 0;        // 0: one for each usable core
  WeightPolicy experts;   // of the routed experts
  WeightPolicy rest;      // of attention, head, dense and shared parts; routers are never quantised
  int64_t kv_blocks = 0;  // blocks of kKvBlock tokens in the cache
  KvType kv_type = KvType::kF32;
  Activations activations = Activations::kFloat32;
};

// What a GPU has of a model.
struct GpuShare {
  int gpu = 0;
  int layers = 0;
  int64_t weight_bytes = 0;
};

struct EngineInfo {
  int64_t weight_bytes = 0;          // as packed
  int64_t expert_bytes = 0;          // the routed experts' share of it
  int64_t active_bytes = 0;          // weights that one token of decode reads
  int64_t kv_bytes = 0;              // of the KV cache when it is full
  std::vector<std::string> formats;  // the distinct formats of the routed experts
  std::vector<GpuShare> gpus;        // in the order of the layers; none: it runs on the CPU
};

// Of layers done, of how many.
using LoadProgress = std::function<void(int64_t, int64_t)>;

class Engine {
 public:
  virtual ~Engine() = default;

  // Reads and packs all weights for the device of the options; `progress` may be empty, `cancel` may be null. kDevice,
  // kUsage and kOutOfMemory say what the device has not got or does not take.
  static Result<std::unique_ptr<Engine>> load(const ModelSpec& spec, const EngineOptions& options,
                                              const LoadProgress& progress, const std::atomic<bool>* cancel);

  // Runs the batch and answers its requests. Errors as check_step; kAborted when `cancel` (may be null) turned true,
  // which leaves the cache entries of the batch's rows undefined; kDevice where a GPU failed. Calls from several
  // threads run one after the other.
  virtual Result<StepResult> step(const StepRequest& request, const std::atomic<bool>* cancel) = 0;

  const EngineInfo& info() const { return info_; }

 protected:
  EngineInfo info_;
};

}  // namespace espalier
