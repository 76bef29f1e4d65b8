// All experts of a part, each over its own rows: gate, up, SwiGLU and down.
#pragma once

#include <vector>

#include "prune/cuda/layer_products.h"

namespace espalier::cuda {

// Keeps its memory from run to run.
class ExpertProducts {
 public:
  explicit ExpertProducts(cudaStream_t stream) : stream_(stream), products_(stream) {}

  // Starts the experts on `slots` rows; a slot's is row tokens[slot] (of the device) of the input, and each expert has
  // those of its group. Sets the groups' weights. kUsage as LayerProducts has it; kOutOfMemory.
  Status run(const DevicePart& part, std::vector<GemmGroup>& groups, const PartRows& input, const int32_t* tokens,
             int64_t slots);

  // Of the last run, in device memory:
  const GemmGroup* groups() const { return down_groups_.as<GemmGroup>(); }
  const DeviceMemory& activation() const { return activation_; }  // float [slots][width of the widest expert]
  const DeviceMemory& output() const { return output_; }          // float [slots][hidden]

 private:
  cudaStream_t stream_;
  LayerProducts products_;
  DeviceMemory gate_groups_, up_groups_, down_groups_;
  DeviceMemory activation_, activation_parts_, up_, output_;
};

}  // namespace espalier::cuda
