#include "engine/cuda/stage.h"

namespace espalier::cuda {

Stage::Stage(StageModel placed, Stream stream, Event done)
    : placed_(std::move(placed)),
      forward_(placed_.model, has_wide_products(placed_.device)),
      stream_(std::move(stream)),
      done_(std::move(done)) {}

Result<std::unique_ptr<Stage>> Stage::create(StageModel placed) {
  ESPALIER_CUDA_TRY(cudaSetDevice(placed.device));
  Result<Stream> stream = Stream::create();
  if (!stream.is_ok()) return stream.status();
  Result<Event> done = Event::create();
  if (!done.is_ok()) return done.status();
  ESPALIER_CUDA_TRY(cudaDeviceSynchronize());
  return std::unique_ptr<Stage>(new Stage(std::move(placed), std::move(stream.value()), std::move(done.value())));
}

void Stage::read_directly(const Stage& before) const {
  int can = 0;
  const bool asked =
      cudaSetDevice(device()) == cudaSuccess && cudaDeviceCanAccessPeer(&can, device(), before.device()) == cudaSuccess;
  if (asked && can != 0) cudaDeviceEnablePeerAccess(before.device(), 0);
  cudaGetLastError();
}

Status Stage::make_room(int rows, int splits, int64_t list_bytes) {
  ESPALIER_CUDA_TRY(cudaSetDevice(device()));
  // With room to spare, so that a growing block table seldom moves.
  const bool moves = list_bytes > lists_.bytes();
  if (moves) ESPALIER_TRY(lists_.ensure(2 * list_bytes));
  const int64_t before = forward_.moves();
  Status reserved = forward_.reserve(rows, splits);
  // Of memory that could not grow, some may have moved.
  if (moves || forward_.moves() != before) graphs_.clear();
  return reserved;
}

Status Stage::receive(const void* lists, int64_t list_bytes, const Stage* before, int rows) {
  ESPALIER_CUDA_TRY(cudaSetDevice(device()));
  ESPALIER_CUDA_TRY(
      cudaMemcpyAsync(lists_.data(), lists, static_cast<size_t>(list_bytes), cudaMemcpyHostToDevice, stream()));
  if (before == nullptr) return Status::ok();
  ESPALIER_CUDA_TRY(cudaEventRecord(before->done_.get(), before->stream()));
  ESPALIER_CUDA_TRY(cudaStreamWaitEvent(stream(), before->done_.get()));
  const size_t bytes = static_cast<size_t>(rows) * static_cast<size_t>(model().hidden) * sizeof(float);
  ESPALIER_CUDA_TRY(
      cudaMemcpyPeerAsync(forward_.hidden(), device(), before->forward_.hidden(), before->device(), bytes, stream()));
  return Status::ok();
}

}  // namespace espalier::cuda
