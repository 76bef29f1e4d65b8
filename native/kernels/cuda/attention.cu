#include <algorithm>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/reduce.cuh"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 128;
static_assert(kAttendChunk == 32, "a lane scores one key of a chunk");

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

constexpr int kWarps = kThreads / 32;

// The keys that a row sees, and the chunks they lie in.
struct Visible {
  int first;
  int limit;

  __device__ Visible(const AttendTask& task, int64_t row) : limit(task.places.positions[row] + 1) {
    first = task.window > 0 ? max(0, limit - task.window) : 0;
  }
  __device__ int first_chunk() const { return first / kAttendChunk; }
  __device__ int last_chunk() const { return (limit - 1) / kAttendChunk; }
};

// kHeads query heads of one row that share a KV head, against chunks of its keys. A warp scores the chunk's keys by its
// part of the elements; then each thread sums one element of the values, or kElements of them. All loads of a chunk are
// under way together: there are few rows, and waiting would take most of the time. kDim is head_dim, 0 for any.
template <class T, int kHeads, int kDim>
__global__ void __launch_bounds__(kThreads) attend_kernel(const __grid_constant__ AttendTask task) {
  constexpr int kElements = kDim > 0 ? (kDim + kThreads - 1) / kThreads : kMostHeadDim / kThreads;
  __shared__ float queries[kHeads][kMostHeadDim];
  __shared__ float scores[kWarps][kHeads][kAttendChunk];
  __shared__ __align__(16) float weights[kHeads][kAttendChunk];
  __shared__ float chunk_most[kHeads];
  __shared__ float chunk_total[kHeads];
  begin_kernel();
  const HeadShape& shape = task.shape;
  const int dim = kDim > 0 ? kDim : shape.head_dim;
  const int thread = threadIdx.x;
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int64_t row = blockIdx.x;
  const int group = shape.heads / shape.kv_heads;
  const int pieces = (group + kHeads - 1) / kHeads;
  const int kv_head = blockIdx.y / pieces;
  const int first_of_group = blockIdx.y % pieces * kHeads;
  const int first_head = kv_head * group + first_of_group;
  const int count = min(kHeads, group - first_of_group);
  const Visible seen(task, row);
  int chunk = seen.first_chunk();
  int last_chunk = seen.last_chunk();
  if (task.splits > 1) {
    const int mine = blockIdx.z * task.split_chunks;
    chunk = max(chunk, mine);
    last_chunk = min(last_chunk, mine + task.split_chunks - 1);
    if (chunk > last_chunk) return;
  }
  const int32_t* table = task.places.blocks + task.places.tables[row];
  const auto block_at = [&](int key) {
    return (static_cast<int64_t>(table[key / kKvTokens]) * shape.kv_heads + kv_head) * dim * kKvTokens;
  };
  for (int i = thread; i < kHeads * dim; i += kThreads) {
    const int h = i / dim;
    const int d = i - h * dim;
    queries[h][d] = h < count ? task.scale * task.queries[(row * shape.heads + first_head + h) * dim + d] : 0.0f;
  }

  float sum[kHeads][kElements] = {};
  float most[kHeads];
  float total[kHeads] = {};
  float chunk_weight[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) most[h] = -INFINITY;
  for (; chunk <= last_chunk; ++chunk) {
    const int begin = chunk * kAttendChunk;
    const int key = begin + lane;
    const bool visible = key >= seen.first && key < seen.limit;
    // Values are needed last, but waiting for them begins here.
    float value[kElements][kAttendChunk];
#pragma unroll
    for (int half = 0; half < kAttendChunk; half += kKvTokens) {
      const int from = begin + half;
      const bool any = from < seen.limit && from + kKvTokens > seen.first;
      const T* values = static_cast<const T*>(task.cache.values) + (any ? block_at(from) : 0);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int d = thread + e * kThreads;
#pragma unroll
        for (int i = 0; i < kKvTokens; ++i) {
          // What nobody has written may be NaN.
          const bool used = d < dim && from + i >= seen.first && from + i < seen.limit;
          value[e][half + i] = used ? to_float(values[i * dim + d]) : 0.0f;
        }
      }
    }
    float score[kHeads] = {};
    const T* keys = static_cast<const T*>(task.cache.keys) + (visible ? block_at(key) + key % kKvTokens : 0);
    if constexpr (kDim > 0) {
      constexpr int kMine = kDim / kWarps;
      float k[kMine];
#pragma unroll
      for (int d = 0; d < kMine; ++d) k[d] = visible ? to_float(keys[(warp * kMine + d) * kKvTokens]) : 0.0f;
      // The queries of the first chunk.
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kMine; ++d) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) score[h] += queries[h][warp * kMine + d] * k[d];
      }
    } else {
      __syncthreads();
      if (visible) {
#pragma unroll 8
        for (int d = warp * dim / kWarps; d < (warp + 1) * dim / kWarps; ++d) {
          const float k = to_float(keys[d * kKvTokens]);
#pragma unroll
          for (int h = 0; h < kHeads; ++h) score[h] += queries[h][d] * k;
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) scores[warp][h][lane] = score[h];
    __syncthreads();
    for (int h = warp; h < kHeads; h += kWarps) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) all += scores[w][h][lane];
      const float largest = warp_max(visible ? all : -INFINITY);
      const float weight = visible ? expf(all - largest) : 0.0f;
      const float of_chunk = warp_sum(weight);
      weights[h][lane] = weight;
      if (lane == 0) {
        chunk_most[h] = largest;
        chunk_total[h] = of_chunk;
      }
    }
    __syncthreads();

#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float together = fmaxf(most[h], chunk_most[h]);
      const float before = expf(most[h] - together);
      const float now = expf(chunk_most[h] - together);
      total[h] = total[h] * before + chunk_total[h] * now;
      most[h] = together;
#pragma unroll
      for (int e = 0; e < kElements; ++e) sum[h][e] *= before;
      chunk_weight[h] = now;
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float of_chunk[kElements] = {};
#pragma unroll
      for (int i = 0; i < kAttendChunk; i += 4) {
        const float4 weight = *reinterpret_cast<const float4*>(&weights[h][i]);
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          of_chunk[e] += weight.x * value[e][i];
          of_chunk[e] += weight.y * value[e][i + 1];
          of_chunk[e] += weight.z * value[e][i + 2];
          of_chunk[e] += weight.w * value[e][i + 3];
        }
      }
#pragma unroll
      for (int e = 0; e < kElements; ++e) sum[h][e] += of_chunk[e] * chunk_weight[h];
    }
    __syncthreads();
  }

#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h >= count) break;
    const int64_t head = row * shape.heads + first_head + h;
    float* partial = task.splits > 1 ? task.partials + (head * task.splits + blockIdx.z) * (dim + 2) : nullptr;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int d = thread + e * kThreads;
      if (d >= dim) continue;
      if (partial != nullptr) {
        partial[d] = sum[h][e];
      } else {
        store_parts(task.out, row, (first_head + h) * dim + d, sum[h][e] / total[h]);
      }
    }
    if (partial != nullptr && thread == 0) {
      partial[dim] = most[h];
      partial[dim + 1] = total[h];
    }
  }
  if (task.splits == 1 && blockIdx.y == 0) {
    for (int i = shape.heads * dim + thread; i < task.out.stride; i += kThreads) store_parts(task.out, row, i, 0.0f);
  }
}

// Merges what the blocks of one row and head found. Every warp finds the factors for itself, while the first sums are
// on their way.
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ AttendTask task) {
  constexpr int kAhead = 16;
  __shared__ float of_warps[kWarps][kMostSplits];
  begin_kernel();
  const HeadShape& shape = task.shape;
  const int64_t row = blockIdx.x;
  const int head = blockIdx.y;
  const int lane = threadIdx.x % 32;
  float* factors = of_warps[threadIdx.x / 32];
  const Visible seen(task, row);
  const int first = seen.first_chunk() / task.split_chunks;
  const int count = seen.last_chunk() / task.split_chunks + 1 - first;
  const int stride = shape.head_dim + 2;
  const float* partials = task.partials + ((row * shape.heads + head) * task.splits + first) * stride;
  float ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    ahead[i] = i < count && threadIdx.x < shape.head_dim ? partials[i * stride + threadIdx.x] : 0.0f;
  }
  float most = -INFINITY;
  for (int i = lane; i < count; i += 32) most = fmaxf(most, partials[i * stride + shape.head_dim]);
  most = warp_max(most);
  float total = 0;
  for (int i = lane; i < count; i += 32) {
    factors[i] = expf(partials[i * stride + shape.head_dim] - most);
    total += factors[i] * partials[i * stride + shape.head_dim + 1];
  }
  total = warp_sum(total);
  __syncwarp();
  for (int d = threadIdx.x; d < shape.head_dim; d += kThreads) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < count) sum += factors[i] * (d < kThreads ? ahead[i] : partials[i * stride + d]);
    }
#pragma unroll 16
    for (int i = kAhead; i < count; ++i) sum += factors[i] * partials[i * stride + d];
    store_parts(task.out, row, head * shape.head_dim + d, sum / total);
  }
  if (head > 0) return;
  for (int i = shape.heads * shape.head_dim + threadIdx.x; i < task.out.stride; i += kThreads) {
    store_parts(task.out, row, i, 0.0f);
  }
}

template <class T, int kDim>
auto attend_function(int group) {
  if (group <= 1) return std::pair(&attend_kernel<T, 1, kDim>, 1);
  if (group <= 4) return std::pair(&attend_kernel<T, 4, kDim>, 4);
  return std::pair(&attend_kernel<T, 8, kDim>, 8);
}

template <class T>
auto attend_function(int group, int head_dim) {
  return head_dim == 128 ? attend_function<T, 128>(group) : attend_function<T, 0>(group);
}

}  // namespace

Status prepare_heads(const HeadsTask& task, cudaStream_t stream) {
  const dim3 grid(task.places.rows, task.shape.heads + 2 * task.shape.kv_heads);
  const auto kernel = task.cache.is_bf16 ? &heads_kernel<__nv_bfloat16> : &heads_kernel<float>;
  return launch("prepare_heads", kernel, {grid, kThreads}, stream, task);
}

Status attend(const AttendTask& task, cudaStream_t stream) {
  if (task.splits > kMostSplits) return Status(Code::kUsage, "attention is split into too many parts");
  const int group = task.shape.heads / task.shape.kv_heads;
  const int dim = task.shape.head_dim;
  const auto [kernel, heads] =
      task.cache.is_bf16 ? attend_function<__nv_bfloat16>(group, dim) : attend_function<float>(group, dim);
  const unsigned pieces = static_cast<unsigned>((group + heads - 1) / heads);
  const dim3 grid(task.places.rows, task.shape.kv_heads * pieces, task.splits);
  ESPALIER_TRY(launch("attend", kernel, {grid, kThreads}, stream, task));
  if (task.splits == 1) return Status::ok();
  return launch("merge attention", merge_kernel, {dim3(task.places.rows, task.shape.heads), kThreads}, stream, task);
}

}  // namespace espalier::cuda
