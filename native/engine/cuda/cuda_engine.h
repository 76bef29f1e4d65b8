// The engine on a GPU. In builds without CUDA it says why it cannot be.
//
// How a step runs. The host turns the ragged batch into flat lists (token, position and block table of each row) and
// sends them in one copy; every kernel of the step then follows on one stream without the host, and what is asked of
// logits comes back in one copy. All weights, the KV cache and the residual stream stay on the device.
//
// A model that one device has no room for is a pipeline (stage.h, placement.h): each device has a run of layers with
// their part of the KV cache, gets the same lists, and the rows' hidden states from the one before. Events on the
// streams order that, not the host, and a step's bits are those of one device. Stages wait for each other, so that a
// step takes no less time than on one device that had room.
//
//   embed → for each layer: norm → Wq, Wk, Wv as one product → bias, norms, rotation, cache → attention → Wo →
//   add, norm → router → gate and up of the chosen experts as one product → SwiGLU → down → weighted sum → … → head
//
// The residual stream, all sums, the router and attention are float32. Products take bf16 weights; their inputs are
// sums of one or two rows of bf16, by the engine's activations (kernels/cuda/product.h). The experts of a layer lie in
// one set of tiles, padded to the widest of them, so that one launch multiplies by those that a router chose; the
// router's choice never leaves the device. With many tokens, those of an expert are collected in groups.
#pragma once

#include <atomic>
#include <memory>

#include "engine/engine.h"

namespace espalier::cuda {

// kDevice where there is no such GPU; kUsage for weights, caches and shapes that its kernels do not take.
Result<std::unique_ptr<Engine>> load_engine(const ModelSpec& spec, const EngineOptions& options,
                                            const LoadProgress& progress, const std::atomic<bool>* cancel);

}  // namespace espalier::cuda
