// From a checkpoint to device memory.
#pragma once

#include <atomic>

#include "engine/cuda/model.h"
#include "engine/engine.h"

namespace espalier::cuda {

// Reads, packs and copies everything to the current device. kUsage for what the kernels do not take, kOutOfMemory,
// kAborted, and what reading weights gives.
Result<Model> upload(ThreadPool& pool, const ModelSpec& spec, const EngineOptions& options,
                     const LoadProgress& progress, const std::atomic<bool>* cancel);

// Packs matrices of one shape in the layout that suits them, dense ones if `sparse` is not allowed.
Result<Matrices> upload_matrices(ThreadPool& pool, std::span<const MatrixSource> matrices, bool sparse);
// The same of int8 codes.
Result<Matrices> upload_codes(ThreadPool& pool, std::span<const CodeMatrix> matrices, bool sparse);

}  // namespace espalier::cuda
