// A decoder layer over the calibration set on a GPU. In builds without CUDA it says why it cannot be.
//
// The layer's weights lie on the device as bf16 rows, f16 and float32 ones as the sum of two (kernels/cuda/gemm.h). A
// batch of whole sequences goes through in one piece; its router's logits come to the host, which chooses as the CPU
// engine does and sends back the list of each expert's tokens. Statistics and what surveys
// take of outputs are summed on the device; another observer gets what it would on the CPU, copied to the host.
#pragma once

#include <memory>

#include "prune/layer_runner.h"

namespace espalier::cuda {

// kDevice where there is no such GPU, kUsage for a layer that its kernels do not take, kOutOfMemory.
Result<std::unique_ptr<LayerRunner>> make_layer_runner(int device, const RunnableLayer& layer);

}  // namespace espalier::cuda
