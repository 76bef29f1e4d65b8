#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rank_search.h"

namespace espalier::cuda {
namespace {

// Floats that are not negative compare as their bits do, so the value is found digit by digit from the top.
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kThreads = 512;
constexpr int kMostBlocks = 264;
constexpr int kDigitsOfLane = kDigits / 32;

struct Work {
  uint32_t histogram[kDigits];
  int64_t rank;     // among those with the digits found
  uint32_t prefix;  // the digits found
};
static_assert(sizeof(Work) <= kRankWork);

struct Round {
  int shift;
  int bits;
  uint32_t found;  // where the digits found are
};

__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ RankTask task, Round round) {
  __shared__ uint32_t counts[kDigits];
  begin_kernel();
  Work& work = *static_cast<Work*>(task.work);
  for (int d = threadIdx.x; d < kDigits; d += kThreads) counts[d] = 0;
  __syncthreads();
  const uint32_t prefix = work.prefix;
  const int64_t size = task.rows * task.cols;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const uint32_t row = static_cast<uint32_t>(i) / static_cast<uint32_t>(task.cols);
    const int64_t col = i - row * task.cols;
    float score = fabsf(task.weights[row * task.stride + col]);
    if (task.scales != nullptr) score *= task.scales[col];
    const uint32_t bits = __float_as_uint(score);
    if (((bits ^ prefix) & round.found) == 0)
      atomicAdd(counts + ((bits >> round.shift) & ((1u << round.bits) - 1)), 1u);
  }
  __syncthreads();
  for (int d = threadIdx.x; d < kDigits; d += kThreads) {
    if (counts[d] > 0) atomicAdd(work.histogram + d, counts[d]);
  }
}

// One warp: the digit at the rank; a lane has digits one after the other. Leaves the work space for the next round.
__global__ void pick_kernel(const __grid_constant__ RankTask task, Round round) {
  begin_kernel();
  Work& work = *static_cast<Work*>(task.work);
  const int lane = threadIdx.x;
  const bool is_first = round.found == 0;
  const int64_t rank = is_first ? task.rank : work.rank;
  int64_t own = 0;
  for (int d = 0; d < kDigitsOfLane; ++d) own += work.histogram[lane * kDigitsOfLane + d];
  int64_t before = own;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = __shfl_up_sync(~0u, before, distance);
    before += lane >= distance ? other : 0;
  }
  before -= own;
  __syncwarp();
  if (rank >= before && rank < before + own) {
    int digit = lane * kDigitsOfLane;
    int64_t left = rank - before;
    while (left >= work.histogram[digit]) left -= work.histogram[digit++];
    const uint32_t prefix = work.prefix | static_cast<uint32_t>(digit) << round.shift;
    const bool is_last = round.shift == 0;
    if (is_last) *task.value = __uint_as_float(prefix);
    work.prefix = is_last ? 0 : prefix;
    work.rank = left;
  }
  __syncwarp();
  for (int d = 0; d < kDigitsOfLane; ++d) work.histogram[lane * kDigitsOfLane + d] = 0;
}

__global__ void nothing_kernel(float* value) {
  begin_kernel();
  *value = -1;
}

}  // namespace

Status select_rank(const RankTask& task, cudaStream_t stream) {
  if (task.rank < 0) return launch("select_rank", nothing_kernel, {dim3(1), 1}, stream, task.value);
  const int64_t blocks = std::min<int64_t>((task.rows * task.cols + kThreads - 1) / kThreads, kMostBlocks);
  for (const Round& round : {Round{21, kDigitBits, 0}, Round{10, kDigitBits, 0xffe00000u}, Round{0, 10, 0xfffffc00u}}) {
    ESPALIER_TRY(launch("count_scores", count_kernel, {dim3(blocks), kThreads}, stream, task, round));
    ESPALIER_TRY(launch("pick_digit", pick_kernel, {dim3(1), 32}, stream, task, round));
  }
  return Status::ok();
}

}  // namespace espalier::cuda
