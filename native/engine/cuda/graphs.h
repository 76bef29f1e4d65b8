// Steps of the same shape as CUDA graphs: one call of the host for some hundreds of kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <tuple>

#include "kernels/cuda/cuda_status.h"

namespace espalier::cuda {

// All that the launches of a step depend on, beside the addresses of its memory.
using StepShape = std::tuple<int, int, int, int>;

class StepGraphs {
 public:
  StepGraphs() = default;
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;
  ~StepGraphs() { clear(); }

  // Forgets all graphs, as must be done when memory that their kernels use moves.
  void clear() {
    for (auto& [shape, entry] : entries_) {
      if (entry.graph != nullptr) cudaGraphExecDestroy(entry.graph);
    }
    entries_.clear();
  }

  // Starts on the stream what `launch` starts: from the second step of a shape on as its graph.
  template <class Launch>
  Status run(const StepShape& shape, cudaStream_t stream, const Launch& launch) {
    const auto found = entries_.find(shape);
    if (found == entries_.end()) {
      if (entries_.size() >= kMostEntries) clear();
      entries_[shape] = {};
      return launch();
    }
    Entry& entry = found->second;
    if (entry.graph == nullptr) ESPALIER_TRY(capture(stream, launch, entry));
    ESPALIER_CUDA_TRY(cudaGraphLaunch(entry.graph, stream));
    return Status::ok();
  }

 private:
  static constexpr size_t kMostEntries = 64;
  struct Entry {
    cudaGraphExec_t graph = nullptr;
  };

  template <class Launch>
  static Status capture(cudaStream_t stream, const Launch& launch, Entry& entry) {
    ESPALIER_CUDA_TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const Status launched = launch();
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    ESPALIER_TRY(launched);
    ESPALIER_TRY(to_status(ended, "cudaStreamEndCapture"));
    const cudaError_t made = cudaGraphInstantiate(&entry.graph, graph, 0);
    cudaGraphDestroy(graph);
    return to_status(made, "cudaGraphInstantiate");
  }

  std::map<StepShape, Entry> entries_;
};

}  // namespace espalier::cuda
