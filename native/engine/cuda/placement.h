// Which device has which layers.
#pragma once

#include <atomic>
#include <span>
#include <vector>

#include "engine/cuda/model.h"
#include "engine/engine.h"

namespace espalier::cuda {

// Uploads a model to as few of the devices as have room for it, in their order: each takes layers until the next one,
// with its part of the KV cache and what a step works in, would not fit. So a model that fits the first is there alone.
// How large packed layers are shows only when they are packed: nothing is estimated, and a layer that did not fit is
// packed again. kOutOfMemory if all devices are full; otherwise errors as upload.h's, and kAborted.
Result<std::vector<StageModel>> place_model(ThreadPool& pool, const ModelSpec& spec, const EngineOptions& options,
                                            std::span<const int> devices, const LoadProgress& progress,
                                            const std::atomic<bool>* cancel);

}  // namespace espalier::cuda
