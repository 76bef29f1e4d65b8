#include "kernels/cuda/attention.h"

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/reduce.cuh"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 128;
static_assert(kThreads == kAttendChunk, "a thread scores one key of a chunk");

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }

// One block for each row and head of queries, keys or values.
template <class T>
__global__ void __launch_bounds__(kThreads) heads_kernel(const __grid_constant__ HeadsTask task) {
  __shared__ float head[kMostHeadDim];
  __shared__ float scratch[32];
  begin_kernel();
  const HeadShape& shape = task.shape;
  const int64_t row = blockIdx.x;
  const int index = blockIdx.y;
  const bool is_query = index < shape.heads;
  const bool is_value = index >= shape.heads + shape.kv_heads;
  const int width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
  const float* source = task.source + row * width;
  const auto load = [&](int i) { return source[i] + (task.bias != nullptr ? task.bias[i] : 0.0f); };
  const int begin = index * shape.head_dim;

  const float* norm = is_query ? task.q_norm : is_value ? nullptr : task.k_norm;
  float scale = 1;
  if (norm != nullptr) {
    const bool whole = is_query ? task.q_norm_whole : task.k_norm_whole;
    const int first = !whole ? begin : is_query ? 0 : shape.heads * shape.head_dim;
    const int count = !whole ? shape.head_dim : (is_query ? shape.heads : shape.kv_heads) * shape.head_dim;
    float squares = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) squares += load(first + i) * load(first + i);
    scale = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(count) + task.epsilon);
    norm += begin - first;
  }
  for (int i = threadIdx.x; i < shape.head_dim; i += kThreads) {
    float value = load(begin + i);
    if (norm != nullptr) value = value * scale * norm[i];
    if (task.clip > 0) value = fminf(fmaxf(value, -task.clip), task.clip);
    head[i] = value;
  }
  __syncthreads();

  const int half = shape.head_dim / 2;
  const int position = task.places.positions[row];
  const int64_t block = task.places.blocks[task.places.tables[row] + position / kKvTokens];
  const int place = position % kKvTokens;
  for (int i = threadIdx.x; i < shape.head_dim; i += kThreads) {
    float value = head[i];
    if (!is_value) {
      const int angle = i < half ? i : i - half;
      const float cosine = task.cosines[row * half + angle];
      const float sine = task.sines[row * half + angle];
      value = i < half ? value * cosine - head[i + half] * sine : value * cosine + head[i - half] * sine;
    }
    if (is_query) {
      task.queries[row * shape.heads * shape.head_dim + begin + i] = value;
      continue;
    }
    const int kv_head = (index - shape.heads) % shape.kv_heads;
    const int64_t base = (block * shape.kv_heads + kv_head) * shape.head_dim * kKvTokens;
    if (is_value) {
      store(static_cast<T*>(task.cache.values) + base + place * shape.head_dim + i, value);
    } else {
      store(static_cast<T*>(task.cache.keys) + base + i * kKvTokens + place, value);
    }
  }
}

// Elements of a head that one thread sums.
constexpr int kElements = kMostHeadDim / kThreads;

// What was seen of a row's keys: Σ weight · value by the threads of a block, the maximum of the scores, Σ weight.
template <int kHeads>
struct Seen {
  float sum[kHeads][kElements] = {};
  float most[kHeads];
  float total[kHeads];
};

// kHeads query heads of one row that share a KV head, against chunks of its keys.
template <class T, int kHeads>
__global__ void __launch_bounds__(kThreads) attend_kernel(const __grid_constant__ AttendTask task) {
  __shared__ __align__(16) float queries[kHeads][kMostHeadDim];
  __shared__ __align__(16) float weights[kHeads][kAttendChunk];
  __shared__ float chunk_most[kHeads];
  __shared__ float chunk_total[kHeads];
  begin_kernel();
  const HeadShape& shape = task.shape;
  const int thread = threadIdx.x;
  const int64_t row = blockIdx.x;
  const int group = shape.heads / shape.kv_heads;
  const int pieces = (group + kHeads - 1) / kHeads;
  const int kv_head = blockIdx.y / pieces;
  const int first_of_group = blockIdx.y % pieces * kHeads;
  const int first_head = kv_head * group + first_of_group;
  const int count = min(kHeads, group - first_of_group);
  const int limit = task.places.positions[row] + 1;
  const int first = task.window > 0 ? max(0, limit - task.window) : 0;
  const int32_t* table = task.places.blocks + task.places.tables[row];

  int chunk = first / kAttendChunk;
  int last_chunk = (limit - 1) / kAttendChunk;
  if (task.splits > 1) {
    const int mine = blockIdx.z;
    if (mine < chunk || mine > last_chunk) return;
    chunk = last_chunk = mine;
  }
  for (int i = thread; i < kHeads * shape.head_dim; i += kThreads) {
    const int h = i / shape.head_dim;
    const int d = i - h * shape.head_dim;
    queries[h][d] =
        h < count ? task.scale * task.queries[(row * shape.heads + first_head + h) * shape.head_dim + d] : 0.0f;
  }
  __syncthreads();

  Seen<kHeads> seen;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    seen.most[h] = -INFINITY;
    seen.total[h] = 0;
  }
  for (; chunk <= last_chunk; ++chunk) {
    const int begin = chunk * kAttendChunk;
    const int key = begin + thread;
    const bool visible = key >= first && key < limit;
    float scores[kHeads] = {};
    if (visible) {
      const int64_t base =
          (static_cast<int64_t>(table[key / kKvTokens]) * shape.kv_heads + kv_head) * shape.head_dim * kKvTokens;
      const T* keys = static_cast<const T*>(task.cache.keys) + base + key % kKvTokens;
#pragma unroll 8
      for (int d = 0; d < shape.head_dim; ++d) {
        const float k = to_float(keys[d * kKvTokens]);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) scores[h] += queries[h][d] * k;
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) weights[h][thread] = visible ? scores[h] : -INFINITY;
    __syncthreads();
    for (int h = thread / 32; h < kHeads; h += kThreads / 32) {
      float most = -INFINITY;
      for (int i = thread % 32; i < kAttendChunk; i += 32) most = fmaxf(most, weights[h][i]);
      most = warp_max(most);
      float total = 0;
      for (int i = thread % 32; i < kAttendChunk; i += 32) {
        const float weight = expf(weights[h][i] - most);
        weights[h][i] = weight;
        total += weight;
      }
      total = warp_sum(total);
      if (thread % 32 == 0) {
        chunk_most[h] = most;
        chunk_total[h] = total;
      }
    }
    __syncthreads();

    float sum[kHeads][kElements] = {};
    const int stop = min(limit, begin + kAttendChunk);
    for (int from = max(begin, first) / 4 * 4; from < stop; from += 4) {
      const int64_t base =
          (static_cast<int64_t>(table[from / kKvTokens]) * shape.kv_heads + kv_head) * shape.head_dim * kKvTokens;
      const T* values = static_cast<const T*>(task.cache.values) + base + from % kKvTokens * shape.head_dim;
      float value[kElements][4];
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int d = thread + e * kThreads;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // What nobody has written may be NaN.
          const bool used = d < shape.head_dim && from + i >= first && from + i < limit;
          value[e][i] = used ? to_float(values[i * shape.head_dim + d]) : 0.0f;
        }
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float4 weight = *reinterpret_cast<const float4*>(&weights[h][from - begin]);
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          sum[h][e] += weight.x * value[e][0];
          sum[h][e] += weight.y * value[e][1];
          sum[h][e] += weight.z * value[e][2];
          sum[h][e] += weight.w * value[e][3];
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float most = fmaxf(seen.most[h], chunk_most[h]);
      const float before = expf(seen.most[h] - most);
      const float now = expf(chunk_most[h] - most);
      seen.total[h] = seen.total[h] * before + chunk_total[h] * now;
      seen.most[h] = most;
#pragma unroll
      for (int e = 0; e < kElements; ++e) seen.sum[h][e] = seen.sum[h][e] * before + sum[h][e] * now;
    }
    __syncthreads();
  }

#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h >= count) break;
    float* partial =
        task.splits > 1 ? task.partials + ((row * shape.heads + first_head + h) * task.splits + blockIdx.z) *
                                              (shape.head_dim + 2)
                        : nullptr;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int d = thread + e * kThreads;
      if (d >= shape.head_dim) continue;
      if (partial != nullptr) {
        partial[d] = seen.sum[h][e];
      } else {
        store_parts(task.out, row, (first_head + h) * shape.head_dim + d, seen.sum[h][e] / seen.total[h]);
      }
    }
    if (partial != nullptr && thread == 0) {
      partial[shape.head_dim] = seen.most[h];
      partial[shape.head_dim + 1] = seen.total[h];
    }
  }
  if (task.splits == 1 && blockIdx.y == 0) {
    for (int i = shape.heads * shape.head_dim + thread; i < task.out.stride; i += kThreads) {
      store_parts(task.out, row, i, 0.0f);
    }
  }
}

// Merges the chunks of one row and head.
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ AttendTask task) {
  begin_kernel();
  const HeadShape& shape = task.shape;
  const int64_t row = blockIdx.x;
  const int head = blockIdx.y;
  const int limit = task.places.positions[row] + 1;
  const int first = task.window > 0 ? max(0, limit - task.window) : 0;
  const int first_chunk = first / kAttendChunk;
  const int last_chunk = (limit - 1) / kAttendChunk;
  const int stride = shape.head_dim + 2;
  const float* partials = task.partials + (row * shape.heads + head) * task.splits * stride;
  for (int d = threadIdx.x; d < shape.head_dim; d += kThreads) {
    float most = -INFINITY;
    float total = 0;
    float sum = 0;
    for (int chunk = first_chunk; chunk <= last_chunk; ++chunk) {
      const float* partial = partials + chunk * stride;
      const float together = fmaxf(most, partial[shape.head_dim]);
      const float before = expf(most - together);
      const float now = expf(partial[shape.head_dim] - together);
      total = total * before + partial[shape.head_dim + 1] * now;
      sum = sum * before + partial[d] * now;
      most = together;
    }
    store_parts(task.out, row, head * shape.head_dim + d, sum / total);
  }
  if (head > 0) return;
  for (int i = shape.heads * shape.head_dim + threadIdx.x; i < task.out.stride; i += kThreads) {
    store_parts(task.out, row, i, 0.0f);
  }
}

template <class T>
auto attend_function(int group) {
  if (group <= 1) return std::pair(&attend_kernel<T, 1>, 1);
  if (group <= 2) return std::pair(&attend_kernel<T, 2>, 2);
  if (group <= 4) return std::pair(&attend_kernel<T, 4>, 4);
  return std::pair(&attend_kernel<T, 8>, 8);
}

}  // namespace

Status prepare_heads(const HeadsTask& task, cudaStream_t stream) {
  const dim3 grid(task.places.rows, task.shape.heads + 2 * task.shape.kv_heads);
  const auto kernel = task.cache.is_bf16 ? &heads_kernel<__nv_bfloat16> : &heads_kernel<float>;
  return launch("prepare_heads", kernel, {grid, kThreads}, stream, task);
}

Status attend(const AttendTask& task, cudaStream_t stream) {
  const int group = task.shape.heads / task.shape.kv_heads;
  const auto [kernel, heads] =
      task.cache.is_bf16 ? attend_function<__nv_bfloat16>(group) : attend_function<float>(group);
  const unsigned pieces = static_cast<unsigned>((group + heads - 1) / heads);
  const dim3 grid(task.places.rows, task.shape.kv_heads * pieces, task.splits);
  ESPALIER_TRY(launch("attend", kernel, {grid, kThreads}, stream, task));
  if (task.splits == 1) return Status::ok();
  return launch("merge attention", merge_kernel, {dim3(task.places.rows, task.shape.heads), kThreads}, stream, task);
}

}  // namespace espalier::cuda
