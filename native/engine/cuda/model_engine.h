// An engine over a model that is in device memory already.
#pragma once

#include <memory>
#include <vector>

#include "engine/cuda/model.h"
#include "engine/engine.h"

namespace espalier::cuda {

// The stages in order, each on its device; several may be on the same one. The first must embed, the last one alone
// have a head.
Result<std::unique_ptr<Engine>> make_engine(std::shared_ptr<ThreadPool> pool, const StepLimits& limits,
                                            std::vector<StageModel> stages);

}  // namespace espalier::cuda
