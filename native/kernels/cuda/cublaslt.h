// cuBLASLt, NVIDIA's library of dense products, which is looked for when the program runs: nothing of it is needed to
// build, and where it is not found our own kernels do its work. Plain C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/status.h"

struct CUstream_st;

namespace espalier::cuda {

// What of cublasLt.h is used, the same in versions 12 and 13. Handles are opaque, every function returns kSuccess or
// the number of an error.
namespace lt {
inline constexpr int kSuccess = 0;
inline constexpr int kCompute32F = 68;       // CUBLAS_COMPUTE_32F
inline constexpr int kTransposed = 1;        // CUBLAS_OP_T
inline constexpr int kTransposeA = 3;        // CUBLASLT_MATMUL_DESC_TRANSA, int32_t
inline constexpr int kMaxWorkspace = 1;      // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t
inline constexpr int kFirstAlignment = 5;    // CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, then B, C, D; uint32_t
inline constexpr uint32_t kAlignment = 256;  // what it takes pointers to have unless told otherwise

// cublasLtMatmulHeuristicResult_t.
struct Choice {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Choice) == 96);
}  // namespace lt

struct CublasLt {
  std::string file;
  std::string version;  // such as "13.1.0"
  int (*create)(void** handle) = nullptr;
  int (*destroy)(void* handle) = nullptr;
  int (*layout_create)(void** layout, int type, uint64_t rows, uint64_t cols, int64_t stride) = nullptr;
  int (*layout_destroy)(void* layout) = nullptr;
  int (*task_create)(void** task, int compute_type, int scale_type) = nullptr;
  int (*task_destroy)(void* task) = nullptr;
  int (*task_set)(void* task, int attribute, const void* value, size_t bytes) = nullptr;
  int (*preference_create)(void** preference) = nullptr;
  int (*preference_destroy)(void* preference) = nullptr;
  int (*preference_set)(void* preference, int attribute, const void* value, size_t bytes) = nullptr;
  int (*choose)(void* handle, void* task, void* a, void* b, void* c, void* d, void* preference, int wanted,
                lt::Choice* choices, int* found) = nullptr;
  int (*multiply)(void* handle, void* task, const void* alpha, const void* a, void* a_layout, const void* b,
                  void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                  const void* algorithm, void* workspace, size_t workspace_bytes, CUstream_st* stream) = nullptr;
};

// Where the library may be, in the order in which it is looked for: only the file that ESPALIER_CUBLASLT names, if it
// names one; else NVIDIA's wheels in $VIRTUAL_ENV, $CONDA_PREFIX, where the system's loader looks, $CUDA_HOME,
// $CUDA_PATH, /usr/local/cuda. `environment` gives the value of a variable or nullptr.
std::vector<std::string> cublaslt_places(const std::function<const char*(const char*)>& environment);

// The first of the files that can be loaded. kDevice, which names the places
// that were tried, if there is none or if it lacks a function.
Result<CublasLt> load_cublaslt(const std::vector<std::string>& places);

// Looks once in a process; the library stays loaded.
const Result<CublasLt>& find_cublaslt();

}  // namespace espalier::cuda
