// From a checkpoint to device memory.
#pragma once

#include "engine/cuda/model.h"
#include "engine/engine.h"

namespace espalier::cuda {

// What every device has of a model, and no layers yet. kUsage for what the kernels do not take.
Result<Model> begin_model(const ModelSpec& spec, const EngineOptions& options);

// Read, pack and copy a part of it to the current device. kUsage for what the kernels do not take, kOutOfMemory, and
// what reading weights gives; then `out` may have some of the part.
Status upload_embedding(ThreadPool& pool, const ModelSpec& spec, Elements& out);
// With room for its keys and values.
Status upload_layer(ThreadPool& pool, const LayerSpec& spec, const EngineOptions& options, Layer& out);
Status upload_head(ThreadPool& pool, const ModelSpec& spec, const EngineOptions& options, Model& model);

// Packs matrices of one shape in the layout that suits them, dense ones if `sparse` is not allowed.
Result<Matrices> upload_matrices(ThreadPool& pool, std::span<const MatrixSource> matrices, bool sparse);
// The same of int8 codes.
Result<Matrices> upload_codes(ThreadPool& pool, std::span<const CodeMatrix> matrices, bool sparse);

}  // namespace espalier::cuda
