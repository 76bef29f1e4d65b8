#include "engine/engine.h"

#include "engine/cpu_engine.h"
#include "engine/cuda/cuda_engine.h"

namespace espalier {

Result<std::unique_ptr<Engine>> Engine::load(const ModelSpec& spec, const EngineOptions& options,
                                             const LoadProgress& progress, const std::atomic<bool>* cancel) {
  return options.gpus ? cuda::load_engine(spec, options, progress, cancel)
                      : CpuEngine::load(spec, options, progress, cancel);
}

}  // namespace espalier
