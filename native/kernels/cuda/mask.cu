#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mask.h"

namespace espalier::cuda {
namespace {

// A block has a row: its scores in shared memory, as bits, which compare as the floats do.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kThreads, "each thread has a digit");

__device__ __forceinline__ void load_scores(const MaskTask& task, uint32_t* scores) {
  const float* row = task.weights + blockIdx.x * task.cols;
  for (int64_t c = threadIdx.x; c < task.cols; c += kThreads) {
    const float score = fabsf(row[c]);
    scores[c] = __float_as_uint(task.scales != nullptr ? score * task.scales[c] : score);
  }
  __syncthreads();
}

// Stores the words of a row, each by a warp; `keeps` is asked for existing columns.
template <class Keeps>
__device__ __forceinline__ void store_words(const MaskTask& task, const Keeps& keeps) {
  const int64_t words = (task.cols + 31) / 32;
  for (int64_t word = threadIdx.x / 32; word < words; word += kWarps) {
    const int64_t col = word * 32 + threadIdx.x % 32;
    const uint32_t bits = __ballot_sync(~0u, col < task.cols && keeps(static_cast<int>(col)));
    if (threadIdx.x % 32 == 0) task.kept[blockIdx.x * words + word] = bits;
  }
}

// The sum over the threads before this one; `sums` has kWarps elements that nothing else uses until the next barrier.
__device__ __forceinline__ uint32_t sum_before(uint32_t value, uint32_t* sums) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  uint32_t sum = value;
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, sum, distance);
    sum += lane >= distance ? other : 0;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += sums[w];
  return sum - value;
}

__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ MaskTask task, uint32_t zeros) {
  extern __shared__ uint32_t scores[];
  __shared__ uint32_t histogram[kDigits];
  __shared__ uint32_t sums[kWarps];
  __shared__ uint32_t found;  // the digits of the last score that goes
  __shared__ uint32_t left;   // how many of those with these digits go
  begin_kernel();
  const int cols = static_cast<int>(task.cols);
  if (threadIdx.x == 0) {
    found = 0;
    left = zeros;
  }
  load_scores(task, scores);
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    histogram[threadIdx.x] = 0;
    __syncthreads();
    const uint32_t prefix = found;
    const uint32_t rank = left - 1;
    const uint32_t known = shift == 32 - kDigitBits ? 0 : ~0u << (shift + kDigitBits);
    for (int c = threadIdx.x; c < cols; c += kThreads) {
      if (((scores[c] ^ prefix) & known) == 0) atomicAdd(histogram + ((scores[c] >> shift) & (kDigits - 1)), 1u);
    }
    __syncthreads();
    const uint32_t own = histogram[threadIdx.x];
    const uint32_t before = sum_before(own, sums);
    if (rank >= before && rank < before + own) {
      found = prefix | threadIdx.x << shift;
      left = rank - before + 1;
    }
    __syncthreads();
  }
  // Of those that equal the threshold the first go. A warp has columns one after the other.
  const uint32_t threshold = found;
  const uint32_t ties = left;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int words = (cols + 31) / 32;
  const int own_words = (words + kWarps - 1) / kWarps;
  const int end = min(words, (warp + 1) * own_words);
  const auto is_tie = [&](int word) {
    const int c = word * 32 + lane;
    return __ballot_sync(~0u, c < cols && scores[c] == threshold);
  };
  uint32_t own = 0;
  for (int word = warp * own_words; word < end; ++word) own += __popc(is_tie(word));
  if (lane == 0) sums[warp] = own;
  __syncthreads();
  uint32_t before = 0;
  for (int w = 0; w < warp; ++w) before += sums[w];
  for (int word = warp * own_words; word < end; ++word) {
    const int c = word * 32 + lane;
    const uint32_t tied = is_tie(word);
    const bool is_tied = (tied >> lane & 1) != 0;
    const uint32_t place = before + __popc(tied & ((1u << lane) - 1));
    const bool keeps = c < cols && (is_tied ? place >= ties : scores[c] > threshold);
    const uint32_t bits = __ballot_sync(~0u, keeps);
    if (lane == 0) task.kept[static_cast<int64_t>(blockIdx.x) * words + word] = bits;
    before += __popc(tied);
  }
}

__global__ void __launch_bounds__(kThreads)
    groups_kernel(const __grid_constant__ MaskTask task, int32_t zeros, int32_t group) {
  extern __shared__ uint32_t scores[];
  begin_kernel();
  load_scores(task, scores);
  store_words(task, [&](int c) {
    const int first = c / group * group;
    const uint32_t own = scores[c];
    int before = 0;
    for (int other = first; other < first + group; ++other) {
      before += scores[other] < own || (scores[other] == own && other < c) ? 1 : 0;
    }
    return before >= zeros;
  });
}

__global__ void __launch_bounds__(kThreads)
    threshold_kernel(const __grid_constant__ MaskTask task, const float* threshold) {
  begin_kernel();
  const float limit = *threshold;
  const float* row = task.weights + blockIdx.x * task.cols;
  store_words(task, [&](int c) {
    const float score = fabsf(row[c]);
    return (task.scales != nullptr ? score * task.scales[c] : score) > limit;
  });
}

template <class... Args>
Status start(const char* name, void (*kernel)(MaskTask, Args...), const MaskTask& task, cudaStream_t stream,
             Args... args) {
  const int bytes = static_cast<int>(task.cols * sizeof(uint32_t));
  ESPALIER_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return launch(name, kernel, {dim3(task.rows), kThreads, bytes}, stream, task, args...);
}

}  // namespace

Status mask_rows(const MaskTask& task, int64_t zeros, cudaStream_t stream) {
  // No row has a threshold where nothing goes.
  if (zeros == 0) {
    const auto bytes = static_cast<size_t>(task.rows * mask_words(task.cols)) * sizeof(uint32_t);
    return to_status(cudaMemsetAsync(task.kept, 0xff, bytes, stream), "cudaMemsetAsync");
  }
  return start("mask_rows", rows_kernel, task, stream, static_cast<uint32_t>(zeros));
}

Status mask_groups(const MaskTask& task, int32_t keep, int32_t group, cudaStream_t stream) {
  return start("mask_groups", groups_kernel, task, stream, group - keep, group);
}

Status mask_threshold(const MaskTask& task, const float* threshold, cudaStream_t stream) {
  return launch("mask_threshold", threshold_kernel, {dim3(task.rows), kThreads}, stream, task, threshold);
}

}  // namespace espalier::cuda
