// An engine over a model that is in device memory already.
#pragma once

#include <memory>

#include "engine/cuda/model.h"
#include "engine/engine.h"

namespace espalier::cuda {

// The model must be on the device of that number.
Result<std::unique_ptr<Engine>> make_engine(int device, std::shared_ptr<ThreadPool> pool, const StepLimits& limits,
                                            Model model);

}  // namespace espalier::cuda
