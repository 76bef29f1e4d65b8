// A stage of the pipeline: the layers of a model that lie on one device, and all that their steps need there. A model
// on one GPU is a pipeline of one stage.
#pragma once

#include <memory>

#include "engine/cuda/forward.h"
#include "engine/cuda/graphs.h"
#include "engine/cuda/model.h"

namespace espalier::cuda {

class Stage {
 public:
  // Waits for copies of the weights.
  static Result<std::unique_ptr<Stage>> create(StageModel placed);
  // A step that failed half-way may have left work on the stream.
  ~Stage() { cudaStreamSynchronize(stream()); }
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  // Lets copies from the stage before go from device to device where these can; they come through the host elsewhere.
  void read_directly(const Stage& before) const;

  const Model& model() const { return placed_.model; }
  int device() const { return placed_.device; }
  Forward& forward() { return forward_; }
  const Forward& forward() const { return forward_; }
  cudaStream_t stream() const { return stream_.get(); }
  // The lists of the step, on this device.
  const int32_t* lists() const { return lists_.as<int32_t>(); }

  // What follows is called on each stage in turn, for each step.

  // Makes the device current, and room for the step there. kOutOfMemory.
  Status make_room(int rows, int splits, int64_t list_bytes);
  // Starts copies: of the lists from pinned memory, and of the rows' hidden states from the stage before, if there is
  // one, when all is done that was started there.
  Status receive(const void* lists, int64_t list_bytes, const Stage* before, int rows);
  // Starts what `launch` starts, in steps that have a shape as a graph from the second of it on.
  template <class Launch>
  Status run(const StepShape* shape, const Launch& launch) {
    return shape != nullptr ? graphs_.run(*shape, stream(), launch) : launch();
  }
  // Waits for all that was started; errors of its kernels show here.
  Status wait() const { return stream_.wait(); }

 private:
  Stage(StageModel placed, Stream stream, Event done);

  StageModel placed_;
  Forward forward_;
  Stream stream_;
  Event done_;  // with what the next stage waits for
  DeviceMemory lists_;
  StepGraphs graphs_;
};

}  // namespace espalier::cuda
