// Attention of prompts. A block has up to 64 queries: some rows of a run, each with the heads that share a KV head. It
// goes through the keys they see, chunk by chunk, and keeps the largest score, the sum of weights and the weighted
// values of each query; a warp has 16 of the queries. Floats are split into two bf16 parts whose small product is left
// out; what a bf16 cache holds has one part.
#include <algorithm>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_stage.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kQueries = 64;
// Elements between rows in shared memory that eight rows of 16 bytes lie in different banks with.
constexpr int kPadding = 8;

// Elements of a head up to kDim, keys in chunks, in bf16 parts: kParts of queries, weights and outputs are two.
template <class T, int kDim>
struct Shape {
  static constexpr int kKeys = kDim > 128 ? 32 : 64;
  static constexpr int kParts = sizeof(T) == 4 ? 2 : 1;  // of keys and values
  static constexpr int kKeyStride = kKeys + kPadding;
  static constexpr int kDimStride = kDim + kPadding;
  static constexpr int kQueryBytes = kQueries * kDimStride * 2;  // of a part
  static constexpr int kKeyBytes = kDim * kKeyStride * 2;
  static constexpr int kValueBytes = kKeys * kDimStride * 2;
  static constexpr int kKeysAt = 2 * kQueryBytes;
  static constexpr int kValuesAt = kKeysAt + kParts * kKeyBytes;
  static constexpr int kBytes = kValuesAt + kParts * kValueBytes;
};

// The rows of a block, and the keys that they see.
struct Block {
  int first_row;
  int count;
  int kv_head;
  int first_head;
  int heads;
  int first_position;
  const int32_t* table;

  __device__ int first_key(int window) const { return window > 0 ? max(0, first_position - window + 1) : 0; }
  __device__ int last_key() const { return first_position + count - 1; }
};

// Adds, to two neighbouring tiles of 8 columns, 16 rows times what lies at `at`, each in its parts: all products of
// them but that of the small ones. kParts: of what lies there, the second one `small` bytes behind the first.
template <int kParts>
__device__ __forceinline__ void multiply_parts(float (*sums)[4], const uint32_t (&a)[4], const uint32_t (&a_small)[4],
                                               uint32_t at, int small) {
  const uint4 b = ptx::load_transposed(at);
  ptx::mma_m16n8k16(sums[0], a, b.x, b.y);
  ptx::mma_m16n8k16(sums[1], a, b.z, b.w);
  ptx::mma_m16n8k16(sums[0], a_small, b.x, b.y);
  ptx::mma_m16n8k16(sums[1], a_small, b.z, b.w);
  if constexpr (kParts == 2) {
    const uint4 b_small = ptx::load_transposed(at + small);
    ptx::mma_m16n8k16(sums[0], a, b_small.x, b_small.y);
    ptx::mma_m16n8k16(sums[1], a, b_small.z, b_small.w);
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads) runs_kernel(const __grid_constant__ AttendRunsTask runs, int heads_each) {
  using S = Shape<T, kDim>;
  constexpr int kKeys = S::kKeys;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ int64_t starts[kKeys / kKvTokens];  // of the chunk's blocks in the cache
  begin_kernel();
  const AttendTask& task = runs.rows;
  const HeadShape& shape = task.shape;
  const int dim = shape.head_dim;
  const int group = shape.heads / shape.kv_heads;
  const int pieces = (group + heads_each - 1) / heads_each;
  const int rows_each = kQueries / heads_each;
  const int blocks_of_run = (kMostRun + rows_each - 1) / rows_each;
  Block block{};
  {
    const int run = blockIdx.x / blocks_of_run;
    const int skipped = blockIdx.x % blocks_of_run * rows_each;
    block.count = min(runs.counts[run] - skipped, rows_each);
    if (block.count <= 0) return;
    block.first_row = runs.firsts[run] + skipped;
    block.kv_head = blockIdx.y / pieces;
    const int first_of_group = blockIdx.y % pieces * heads_each;
    block.first_head = block.kv_head * group + first_of_group;
    block.heads = min(heads_each, group - first_of_group);
    block.first_position = task.places.positions[block.first_row];
    block.table = task.places.blocks + task.places.tables[block.first_row];
  }
  const int thread = threadIdx.x;
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int t = lane % 4;
  // Query q of the block: row q / heads_each, head q % heads_each.
  const auto exists = [&](int q) { return q / heads_each < block.count && q % heads_each < block.heads; };

  const float scale = task.scale * 1.44269504f;  // weights are powers of two
  for (int i = thread; i < kQueries * (kDim / 2); i += kThreads) {
    const int q = i / (kDim / 2);
    const int d = i % (kDim / 2) * 2;
    float2 v{};
    if (d < dim && exists(q)) {
      const int64_t row = block.first_row + q / heads_each;
      v = *reinterpret_cast<const float2*>(task.queries +
                                           (row * shape.heads + block.first_head + q % heads_each) * dim + d);
    }
    const Pair pair(v.x * scale, v.y * scale);
    uint8_t* to = shared + (q * S::kDimStride + d) * 2;
    *reinterpret_cast<uint32_t*>(to) = pair.large;
    *reinterpret_cast<uint32_t*>(to + S::kQueryBytes) = pair.small;
  }

  // Where the lane's rows of matrices lie: of queries 16 × 16, of keys and values two times 16 × 8, transposed.
  const uint32_t base = ptx::shared_address(shared);
  const uint32_t query_at = base + ((warp * 16 + lane % 16) * S::kDimStride + lane / 16 * 8) * 2;
  const uint32_t key_at = base + S::kKeysAt + (lane % 16 * S::kKeyStride + lane / 16 * 8) * 2;
  const uint32_t value_at = base + S::kValuesAt + (lane % 16 * S::kDimStride + lane / 16 * 8) * 2;

  // The lane's two queries: rows g and g + 8 of the warp's.
  int last_seen[2];
  int first_seen[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int q = warp * 16 + lane / 4 + 8 * i;
    last_seen[i] = exists(q) ? block.first_position + q / heads_each : -1;
    first_seen[i] = task.window > 0 ? last_seen[i] - task.window + 1 : 0;
  }
  float out[kDim / 8][4] = {};
  float most[2] = {-INFINITY, -INFINITY};
  float total[2] = {};
  const int first_key = block.first_key(task.window);
  const int last_key = block.last_key();
  for (int chunk = first_key / kKeys; chunk <= last_key / kKeys; ++chunk) {
    __syncthreads();
    if (thread < kKeys / kKvTokens) {
      const int key = chunk * kKeys + thread * kKvTokens;
      const bool used = key <= last_key && key + kKvTokens > first_key;
      starts[thread] =
          used ? (static_cast<int64_t>(block.table[key / kKvTokens]) * shape.kv_heads + block.kv_head) * dim * kKvTokens
               : -1;
    }
    __syncthreads();
    // Four tokens of an element of a key, then four elements of a value. What nobody has written may be NaN.
    stage<T, kThreads, kKeys / 4 * kDim>(static_cast<const T*>(task.cache.keys), S::kKeyBytes, [&](int i) {
      const int part = i / (4 * kDim);
      const int d = i % (4 * kDim) / 4;
      const int token = i % 4 * 4;
      return StagePlace{starts[part] + d * kKvTokens + token, starts[part] >= 0 && d < dim,
                        shared + S::kKeysAt + (d * S::kKeyStride + part * kKvTokens + token) * 2};
    });
    stage<T, kThreads, kKeys / 4 * kDim>(static_cast<const T*>(task.cache.values), S::kValueBytes, [&](int i) {
      const int of_chunk = i / (kDim / 4);
      const int d = i % (kDim / 4) * 4;
      const int key = chunk * kKeys + of_chunk;
      return StagePlace{starts[of_chunk / kKvTokens] + of_chunk % kKvTokens * dim + d,
                        key <= last_key && key >= first_key && d < dim,
                        shared + S::kValuesAt + (of_chunk * S::kDimStride + d) * 2};
    });
    __syncthreads();

    float scores[kKeys / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const uint4 large = ptx::load_matrices(query_at + k * 32);
      const uint4 small = ptx::load_matrices(query_at + S::kQueryBytes + k * 32);
      // The registers of A are the rows g, then g + 8 of the first eight elements, then of the second eight.
      const uint32_t a[4] = {large.x, large.y, large.z, large.w};
      const uint32_t a_small[4] = {small.x, small.y, small.z, small.w};
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        multiply_parts<S::kParts>(&scores[2 * n], a, a_small, key_at + (k * 16 * S::kKeyStride + n * 16) * 2,
                                  S::kKeyBytes);
      }
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int key = chunk * kKeys + n * 8 + 2 * t + c;
          float& score = scores[n][2 * i + c];
          if (key > last_seen[i] || key < first_seen[i]) score = -INFINITY;
          largest = fmaxf(largest, score);
        }
      }
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      const float together = fmaxf(most[i], largest);
      // A query that has seen nothing yet weighs nothing.
      const float reference = together == -INFINITY ? 0.0f : together;
      const float before = exp2f(most[i] - reference);
      most[i] = together;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[n][2 * i + c];
          score = exp2f(score - reference);
          sum += score;
        }
      }
      total[i] = total[i] * before + sum;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        out[n][2 * i] *= before;
        out[n][2 * i + 1] *= before;
      }
    }

#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const Pair p0(scores[2 * k][0], scores[2 * k][1]);
      const Pair p1(scores[2 * k][2], scores[2 * k][3]);
      const Pair p2(scores[2 * k + 1][0], scores[2 * k + 1][1]);
      const Pair p3(scores[2 * k + 1][2], scores[2 * k + 1][3]);
      const uint32_t a[4] = {p0.large, p1.large, p2.large, p3.large};
      const uint32_t a_small[4] = {p0.small, p1.small, p2.small, p3.small};
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        multiply_parts<S::kParts>(&out[2 * n], a, a_small, value_at + (k * 16 * S::kDimStride + n * 16) * 2,
                                  S::kValueBytes);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    total[i] += __shfl_xor_sync(~0u, total[i], 1);
    total[i] += __shfl_xor_sync(~0u, total[i], 2);
    const int q = warp * 16 + lane / 4 + 8 * i;
    if (!exists(q)) continue;
    const int64_t row = block.first_row + q / heads_each;
    const int first = (block.first_head + q % heads_each) * dim;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int d = n * 8 + 2 * t;
      if (d >= dim) continue;
      store_parts(task.out, row, first + d, out[n][2 * i] / total[i]);
      store_parts(task.out, row, first + d + 1, out[n][2 * i + 1] / total[i]);
    }
  }
  if (blockIdx.y > 0) return;
  const int width = shape.heads * dim;
  for (int i = thread; i < block.count * (task.out.stride - width); i += kThreads) {
    const int padding = task.out.stride - width;
    store_parts(task.out, block.first_row + i / padding, width + i % padding, 0.0f);
  }
}

template <class T, int kDim>
Status launch_runs(const AttendRunsTask& task, cudaStream_t stream) {
  const HeadShape& shape = task.rows.shape;
  const int group = shape.heads / shape.kv_heads;
  const int heads_each = std::min(group, kQueries);
  const int rows_each = kQueries / heads_each;
  const int pieces = (group + heads_each - 1) / heads_each;
  const auto kernel = &runs_kernel<T, kDim>;
  constexpr int kBytes = Shape<T, kDim>::kBytes;
  ESPALIER_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(task.runs * ((kMostRun + rows_each - 1) / rows_each), shape.kv_heads * pieces);
  return launch("attend_runs", kernel, {grid, kThreads, kBytes}, stream, task, heads_each);
}

template <class T>
Status launch_runs(const AttendRunsTask& task, cudaStream_t stream) {
  const int dim = task.rows.shape.head_dim;
  if (dim <= 64) return launch_runs<T, 64>(task, stream);
  if (dim <= 128) return launch_runs<T, 128>(task, stream);
  return launch_runs<T, 256>(task, stream);
}

}  // namespace

Status attend_runs(const AttendRunsTask& task, cudaStream_t stream) {
  const int dim = task.rows.shape.head_dim;
  if (!can_attend_runs(task.rows.shape) || dim > kMostHeadDim) {
    return Status(Code::kUsage, "attention of runs takes heads of a multiple of 4 elements up to " +
                                    std::to_string(kMostHeadDim) + ", not " + std::to_string(dim));
  }
  return task.rows.cache.is_bf16 ? launch_runs<__nv_bfloat16>(task, stream) : launch_runs<float>(task, stream);
}

}  // namespace espalier::cuda
