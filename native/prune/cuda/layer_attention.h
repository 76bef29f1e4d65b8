// The attention of a layer over a batch of whole sequences, and what the feed-forward reads after it.
#pragma once

#include <vector>

#include "prune/cuda/layer_products.h"

namespace espalier::cuda {

// Keeps its memory from batch to batch.
class LayerAttention {
 public:
  // `weights` must outlive it, and what `layer` refers to.
  LayerAttention(const RunnableLayer& layer, const DeviceLayer& weights, cudaStream_t stream)
      : layer_(layer), weights_(weights), stream_(stream), products_(stream) {}

  // Starts hidden += attention(norm(hidden)), float [batch.rows][hidden], and the norm of that for the feed-forward.
  Status run(const Batch& batch, float* hidden);

  // That norm of the last batch, in device memory.
  PartRows input() const { return {input_.as<uint16_t>(), kGemmParts, part_stride(layer_.hidden)}; }
  const DeviceMemory& input_floats() const { return input_floats_; }

 private:
  // Where the batch's rows stand in their sequences, and room for keys and values.
  Status send_places(const Batch& batch);

  RunnableLayer layer_;
  const DeviceLayer& weights_;
  cudaStream_t stream_;
  LayerProducts products_;
  DeviceMemory input_, input_floats_, output_;
  std::vector<int32_t> positions_;  // what the following are of
  DeviceMemory positions_device_, tables_, blocks_, cosines_, sines_;
  DeviceMemory qkv_, queries_, keys_, values_, mixed_;
};

}  // namespace espalier::cuda
