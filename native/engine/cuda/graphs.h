// Steps of the same shape as CUDA graphs.
#pragma once

#include <map>
#include <tuple>

#include "kernels/cuda/graph.h"

namespace espalier::cuda {

// All that the launches of a step depend on, beside the addresses of its memory.
using StepShape = std::tuple<int, int, int, int>;

class StepGraphs {
 public:
  // Forgets all graphs, as must be done when memory that their kernels use moves.
  void clear() { graphs_.clear(); }

  // Starts on the stream what `launch` starts: from the second step of a shape on as its graph.
  template <class Launch>
  Status run(const StepShape& shape, cudaStream_t stream, const Launch& launch) {
    const auto found = graphs_.find(shape);
    if (found == graphs_.end()) {
      if (graphs_.size() >= kMostGraphs) clear();
      graphs_.try_emplace(shape);
      return launch();
    }
    Graph& graph = found->second;
    if (!graph.is_captured()) ESPALIER_TRY(graph.capture(stream, launch));
    return graph.launch(stream);
  }

 private:
  static constexpr size_t kMostGraphs = 64;

  std::map<StepShape, Graph> graphs_;
};

}  // namespace espalier::cuda
