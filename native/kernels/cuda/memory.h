// Device memory and streams that free themselves; every error is a Status.
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
    ESPALIER_CUDA_TRY(cudaMalloc(&memory.data_, static_cast<size_t>(bytes)));
    memory.bytes_ = bytes;
    return Result<DeviceMemory>(std::move(memory));
  }

  void* data() const { return data_; }
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

}  // namespace espalier::cuda
