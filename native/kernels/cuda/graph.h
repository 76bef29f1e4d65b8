// What is started on a stream as a CUDA graph: one call of the host for some hundreds of kernels.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_status.h"

namespace espalier::cuda {

class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }

  bool is_captured() const { return graph_ != nullptr; }

  // Takes up what `launch` would start on the stream, once. Its kernels must have been loaded, as their first launch
  // does.
  template <class Launch>
  Status capture(cudaStream_t stream, const Launch& launch) {
    ESPALIER_CUDA_TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const Status launched = launch();
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    ESPALIER_TRY(launched);
    ESPALIER_TRY(to_status(ended, "cudaStreamEndCapture"));
    const cudaError_t made = cudaGraphInstantiate(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    return to_status(made, "cudaGraphInstantiate");
  }
  Status launch(cudaStream_t stream) const { return to_status(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace espalier::cuda
