// Steps of one row by the decode kernel, where there is one for the model.
#pragma once

#include "engine/cuda/model.h"
#include "kernels/cuda/decode/decode.h"

namespace espalier::cuda {

class OneRow {
 public:
  // Finds out whether the kernel takes the model's layers, and makes room for it. kOutOfMemory. The model's memory must
  // stay where it is.
  Status prepare(const Model& model);
  bool takes_model() const { return memory_.bytes() > 0; }
  // Starts all layers. `residual` [hidden] holds the embedded token, then the last layer's hidden states.
  Status run(const RowPlaces& places, const float* cosines, const float* sines, float* residual, cudaStream_t stream);

 private:
  DecodeTask task_;
  DeviceMemory layers_;
  DeviceMemory memory_;
};

}  // namespace espalier::cuda
