// Device memory, streams and events that free themselves; every error is a Status.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "kernels/cuda/cuda_status.h"

namespace espalier::cuda {

class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  // Whoever started work on the memory waits for it first.
  ~DeviceMemory() { cudaFree(data_); }

  // kOutOfMemory if the device has not so much left.
  static Result<DeviceMemory> allocate(int64_t bytes) {
    DeviceMemory memory;
    const cudaError_t error = cudaMalloc(&memory.data_, static_cast<size_t>(bytes));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t free = 0;
      size_t total = 0;
      ESPALIER_CUDA_TRY(cudaMemGetInfo(&free, &total));
      return Status(Code::kOutOfMemory, "not enough memory on the GPU for " + std::to_string(bytes) + " bytes: " +
                                            std::to_string(free) + " of " + std::to_string(total) + " are free");
    }
    ESPALIER_TRY(to_status(error, "cudaMalloc"));
    memory.bytes_ = bytes;
    return Result<DeviceMemory>(std::move(memory));
  }

  // A copy of `bytes` bytes of the host.
  static Result<DeviceMemory> copy_of(const void* host, int64_t bytes) {
    Result<DeviceMemory> memory = allocate(bytes);
    if (memory.is_ok()) {
      ESPALIER_CUDA_TRY(cudaMemcpy(memory.value().data(), host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice));
    }
    return memory;
  }

  // Grows without keeping the contents.
  Status ensure(int64_t bytes) {
    if (bytes <= bytes_) return Status::ok();
    *this = DeviceMemory();
    Result<DeviceMemory> grown = allocate(bytes);
    if (!grown.is_ok()) return grown.status();
    *this = std::move(grown.value());
    return Status::ok();
  }

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Memory of the host that copies to and from the device run at full speed with.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory() { cudaFreeHost(data_); }

  // Grows without keeping the contents.
  Status ensure(int64_t bytes) {
    if (bytes <= bytes_) return Status::ok();
    cudaFreeHost(data_);
    data_ = nullptr;
    bytes_ = 0;
    ESPALIER_CUDA_TRY(cudaMallocHost(&data_, static_cast<size_t>(bytes)));
    bytes_ = bytes;
    return Status::ok();
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

class Stream {
 public:
  Stream() = default;
  Stream(Stream&& other) noexcept { *this = std::move(other); }
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  static Result<Stream> create() {
    Stream stream;
    ESPALIER_CUDA_TRY(cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking));
    return Result<Stream>(std::move(stream));
  }

  cudaStream_t get() const { return stream_; }
  // Errors of kernels that ran since the last call show here.
  Status wait() const { return to_status(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() = default;
  Event(Event&& other) noexcept { *this = std::move(other); }
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }

  // `flags`: cudaEventDefault for one that tells the time.
  static Result<Event> create(unsigned flags = cudaEventDisableTiming) {
    Event event;
    ESPALIER_CUDA_TRY(cudaEventCreateWithFlags(&event.event_, flags));
    return Result<Event>(std::move(event));
  }

  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace espalier::cuda
