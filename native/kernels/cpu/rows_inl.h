// Operations on the rows of activations: norms, activation, softmax, attention. Compiled once for each instruction set.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/vector.h"

namespace espalier {
namespace {

static_assert(kKvBlock == kVectorFloats, "the scores of a KV block are one vector");

void rms_norm(const float* x, const float* weight, int64_t n, float epsilon, float* out) {
  Vf squares = {};
  int64_t i = 0;
  for (; i + kVectorFloats <= n; i += kVectorFloats) {
    const Vf v = load(x + i);
    squares += v * v;
  }
  const Vf tail = load_first(x + i, n - i);
  squares += tail * tail;
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + epsilon);
  for (int64_t k = 0; k < n; ++k) out[k] = x[k] * scale * weight[k];
}

ESPALIER_INLINE Vf silu(Vf x) { return x / (exp(-x) + 1.0f); }

void silu_multiply(const float* gate, const float* up, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kVectorFloats <= n; i += kVectorFloats) store(out + i, silu(load(gate + i)) * load(up + i));
  store_first(out + i, n - i, silu(load_first(gate + i, n - i)) * load_first(up + i, n - i));
}

// exp(x − maximum) into `out` (may be x); returns the sum. The lanes past n count as nothing.
float exponentials(const float* x, int64_t n, float maximum, float* out) {
  Vf total = {};
  int64_t i = 0;
  for (; i + kVectorFloats <= n; i += kVectorFloats) {
    const Vf e = exp(load(x + i) - maximum);
    if (out != nullptr) store(out + i, e);
    total += e;
  }
  float result = sum(total);
  if (i < n) {
    const Vf e = exp(load_first(x + i, n - i) - maximum);
    if (out != nullptr) store_first(out + i, n - i, e);
    for (int64_t k = 0; k < n - i; ++k) result += e[k];
  }
  return result;
}

float maximum_of(const float* x, int64_t n) {
  if (n < kVectorFloats) {
    float best = x[0];
    for (int64_t i = 1; i < n; ++i) best = x[i] > best ? x[i] : best;
    return best;
  }
  Vf best = load(x + n - kVectorFloats);
  for (int64_t i = 0; i + kVectorFloats <= n; i += kVectorFloats) best = max(best, load(x + i));
  return max_lane(best);
}

void softmax(float* x, int64_t n) {
  const float scale = 1.0f / exponentials(x, n, maximum_of(x, n), x);
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

double log_sum_exp(const float* x, int64_t n) {
  const float maximum = maximum_of(x, n);
  return std::log(static_cast<double>(exponentials(x, n, maximum, nullptr))) + static_cast<double>(maximum);
}

void axpy(float a, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

// Scores of a whole block at once: keys lie [head_dim][kKvBlock], so one multiply-add serves 16 keys and nothing is
// summed across lanes.
ESPALIER_INLINE Vf score_block(const float* query, const float* keys, int head_dim) {
  Vf even = {};
  Vf odd = {};
  for (int d = 0; d < head_dim; d += 2) {
    even += load(keys + d * kKvBlock) * query[d];
    odd += load(keys + (d + 1) * kKvBlock) * query[d + 1];
  }
  return even + odd;
}

void attend(const AttendTask& task) {
  const int64_t first_block = task.first / kKvBlock;
  const int64_t last_block = (task.last + kKvBlock - 1) / kKvBlock;
  const int64_t count = (last_block - first_block) * kKvBlock;
  for (int64_t b = first_block; b < last_block; ++b) {
    const float* keys = task.keys + task.blocks[b] * task.block_stride;
    store(task.scores + (b - first_block) * kKvBlock, score_block(task.query, keys, task.head_dim) * task.scale);
  }
  // Keys outside [first, last) share a block with those inside.
  for (int64_t i = 0; i < task.first - first_block * kKvBlock; ++i) task.scores[i] = -INFINITY;
  for (int64_t i = task.last - first_block * kKvBlock; i < count; ++i) task.scores[i] = -INFINITY;
  softmax(task.scores, count);

  const int64_t whole = task.head_dim / kVectorFloats * kVectorFloats;
  for (int64_t d = 0; d < task.head_dim; d += kVectorFloats) {
    Vf acc = {};
    const int64_t width = d < whole ? kVectorFloats : task.head_dim - d;
    for (int64_t b = first_block; b < last_block; ++b) {
      const float* values = task.values + task.blocks[b] * task.block_stride;
      const float* scores = task.scores + (b - first_block) * kKvBlock;
      // Stale values past `last` must not meet a weight of 0 (0 · NaN): stop at the last key.
      const int64_t keys = task.last - b * kKvBlock < kKvBlock ? task.last - b * kKvBlock : kKvBlock;
      for (int64_t p = 0; p < keys; ++p) {
        const float* value = values + p * task.head_dim + d;
        acc += (width == kVectorFloats ? load(value) : load_first(value, width)) * scores[p];
      }
    }
    store_first(task.out + d, width, acc);
  }
}

}  // namespace
}  // namespace espalier
