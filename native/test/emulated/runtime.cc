// The runtime's calls. What is started on a stream is done at once.
#include <cuda.h>

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>

#include "cuda_runtime.h"
#include "emulated/tensor_map.h"

struct CUstream_st {
  CUgraph_st* captured = nullptr;
};
struct CUgraph_st {
  std::vector<std::function<cudaError_t()>> work;
};
struct CUgraphExec_st {
  CUgraph_st graph;
};
struct CUevent_st {
  double seconds = 0;
};

namespace {

constexpr size_t kMemory = size_t{4} << 30;
constexpr size_t kPoisoned = size_t{16} << 20;
size_t g_used = 0;
std::map<void*, size_t> g_allocations;
CUstream_st g_default_stream;

CUstream_st& at(cudaStream_t stream) { return stream != nullptr ? *stream : g_default_stream; }

// Threads of the host take turns.
std::recursive_mutex g_mutex;
using Turn = std::lock_guard<std::recursive_mutex>;

cudaError_t do_on(cudaStream_t stream, std::function<cudaError_t()> work) {
  const Turn turn(g_mutex);
  if (at(stream).captured == nullptr) return work();
  at(stream).captured->work.push_back(std::move(work));
  return cudaSuccess;
}

}  // namespace

namespace emulated {

LaunchConfig describe_launch(const cudaLaunchConfig_t& config) {
  LaunchConfig out{config.gridDim, config.blockDim, config.dynamicSmemBytes, 1, false};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) out.cluster = static_cast<int>(attribute.val.clusterDim.x);
    if (attribute.id == cudaLaunchAttributeCooperative) out.cooperative = attribute.val.cooperative != 0;
  }
  return out;
}

cudaError_t start(cudaStream_t stream, const LaunchConfig& config, std::function<void()> body) {
  const unsigned blocks = config.grid.x * config.grid.y * config.grid.z;
  const unsigned threads = config.block.x * config.block.y * config.block.z;
  const bool is_valid = blocks > 0 && threads > 0 && threads <= 1024 && config.shared_bytes <= kSharedBytes &&
                        blocks % static_cast<unsigned>(config.cluster) == 0 && config.resident_clusters() > 0 &&
                        (!config.cooperative || static_cast<int>(blocks) <= config.resident_clusters());
  if (!is_valid) return cudaErrorInvalidConfiguration;
  return do_on(stream, [config, body = std::move(body)] { return launch(config, body); });
}

}  // namespace emulated

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const Turn turn(g_mutex);
  *memory = nullptr;
  if (bytes > kMemory - g_used) return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  // What is not written has no good value; of large arrays pages are not touched for that.
  if (bytes <= kPoisoned) std::memset(*memory, static_cast<int>(emulated::lots()() & 0xff), bytes);
  g_allocations[*memory] = bytes;
  g_used += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  const Turn turn(g_mutex);
  const auto found = g_allocations.find(memory);
  if (found == g_allocations.end()) return memory == nullptr ? cudaSuccess : cudaErrorInvalidValue;
  g_used -= found->second;
  g_allocations.erase(found);
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = kMemory - g_used;
  *total = kMemory;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return do_on(stream, [=] { return cudaMemcpy(to, from, bytes, kind); });
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  if (bytes > 0) std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return do_on(stream, [=] { return cudaMemset(to, value, bytes); });
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes, size_t rows,
                         cudaMemcpyKind) {
  for (size_t row = 0; row < rows; ++row) {
    std::memcpy(static_cast<uint8_t*>(to) + row * to_pitch, static_cast<const uint8_t*>(from) + row * from_pitch,
                bytes);
  }
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes, size_t rows,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  return do_on(stream, [=] { return cudaMemcpy2D(to, to_pitch, from, from_pitch, bytes, rows, kind); });
}
cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t bytes, size_t rows, cudaStream_t stream) {
  return do_on(stream, [=] {
    for (size_t row = 0; row < rows; ++row) std::memset(static_cast<uint8_t*>(to) + row * pitch, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = emulated::kMultiprocessors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = emulated::kSharedBytes; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = emulated::kAllSharedBytes; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    default: return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated GPU");
  properties->major = 9;
  properties->totalGlobalMem = kMemory;
  properties->multiProcessorCount = emulated::kMultiprocessors;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "an error of the emulated GPU";
  }
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* answer) {
  const bool is_known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = is_known ? reinterpret_cast<void*>(&emulated::encode_tensor_map) : nullptr;
  *answer = is_known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  at(stream).captured = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(at(stream).captured, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  *made = new CUgraphExec_st{*graph};
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  const Turn turn(g_mutex);
  for (const auto& work : graph->graph.work) {
    if (const cudaError_t error = work(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  event->seconds = static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = static_cast<float>(1e3 * (to->seconds - from->seconds));
  return cudaSuccess;
}
