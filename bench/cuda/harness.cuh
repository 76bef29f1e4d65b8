// What measuring programs share: arrays on the device, replayed graphs, a float64 reference and the plain read that is
// the limit. A program may stop at the first error, unlike the library.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "core/status.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/read.cuh"

namespace bench {

using espalier::cuda::read_kernel;

inline void must(cudaError_t error, const char* call, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, call, cudaGetErrorString(error));
  std::exit(1);
}
inline void must(const espalier::Status& status, const char* call, int line) {
  if (status.is_ok()) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, call, status.message().c_str());
  std::exit(1);
}
#define MUST(call) ::bench::must((call), #call, __LINE__)

template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t size) : size_(size) {
    auto memory = espalier::cuda::DeviceMemory::allocate(static_cast<int64_t>(std::max<size_t>(size, 1) * sizeof(T)));
    MUST(memory.status());
    memory_ = std::move(memory.value());
  }
  DeviceArray(const T* host, size_t size) : DeviceArray(size) {
    MUST(cudaMemcpy(data(), host, size * sizeof(T), cudaMemcpyHostToDevice));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.data(), host.size()) {}

  T* data() const { return static_cast<T*>(memory_.data()); }
  size_t size() const { return size_; }
  // Every bit set: a NaN in all floating-point types.
  void poison() { MUST(cudaMemset(data(), 0xff, size_ * sizeof(T))); }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    MUST(cudaMemcpy(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  espalier::cuda::DeviceMemory memory_;
  size_t size_ = 0;
};

// y[g · tokens + n][row] = Σ W[experts[g]][row][k] x[inputs[…]][k] in float64, one block a sum.
static __global__ void reference_kernel(const __nv_bfloat16* w, const __nv_bfloat16* x, const int32_t* experts,
                                        const int32_t* inputs, double* y, int rows, int cols, int tokens) {
  const int row = blockIdx.x;
  const int token = blockIdx.y;
  const int64_t expert = experts[token / tokens];
  const __nv_bfloat16* weights = w + (expert * rows + row) * cols;
  const __nv_bfloat16* values = x + static_cast<int64_t>(inputs[token]) * cols;
  double sum = 0;
  for (int k = threadIdx.x; k < cols; k += blockDim.x) {
    sum += static_cast<double>(__bfloat162float(weights[k])) * static_cast<double>(__bfloat162float(values[k]));
  }
  __shared__ double parts[128];
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0;
    for (int i = 0; i < 128; ++i) total += parts[i];
    y[static_cast<int64_t>(token) * rows + row] = total;
  }
}

// Something measured: `launch` starts its i-th run on the stream; runs differ in the memory they read.
struct Contender {
  std::string name;
  std::function<void(int i, cudaStream_t stream)> launch;
  double bytes = 0;   // of weights, for one run
  double micros = 0;  // the result
};

// Medians of replays of graphs of `runs` launches each, the contenders taking turns.
inline void measure(std::vector<Contender>& contenders, int runs, int replays) {
  const auto made = espalier::cuda::Stream::create();
  MUST(made.status());
  const cudaStream_t stream = made.value().get();
  cudaEvent_t begin;
  cudaEvent_t end;
  MUST(cudaEventCreate(&begin));
  MUST(cudaEventCreate(&end));
  std::vector<cudaGraphExec_t> graphs;
  for (Contender& contender : contenders) {
    contender.launch(0, stream);
    MUST(made.value().wait());
    cudaGraph_t graph;
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < runs; ++i) contender.launch(i, stream);
    MUST(cudaStreamEndCapture(stream, &graph));
    MUST(cudaGraphInstantiate(&graphs.emplace_back(), graph, 0));
    MUST(cudaGraphDestroy(graph));
  }
  std::vector<std::vector<float>> times(contenders.size());
  for (int replay = -2; replay < replays; ++replay) {
    for (size_t c = 0; c < contenders.size(); ++c) {
      MUST(cudaEventRecord(begin, stream));
      MUST(cudaGraphLaunch(graphs[c], stream));
      MUST(cudaEventRecord(end, stream));
      MUST(cudaEventSynchronize(end));
      float millis = 0;
      MUST(cudaEventElapsedTime(&millis, begin, end));
      if (replay >= 0) times[c].push_back(millis);
    }
  }
  for (size_t c = 0; c < contenders.size(); ++c) {
    std::nth_element(times[c].begin(), times[c].begin() + replays / 2, times[c].end());
    contenders[c].micros = 1000.0 * times[c][static_cast<size_t>(replays / 2)] / runs;
    MUST(cudaGraphExecDestroy(graphs[c]));
  }
  MUST(cudaEventDestroy(begin));
  MUST(cudaEventDestroy(end));
}

}  // namespace bench
