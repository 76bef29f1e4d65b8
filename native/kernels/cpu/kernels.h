// The dispatch table: one set of functions for each instruction set. The engine asks cpu_kernels() and never branches
// on the instruction set or the weight format itself.
//
// Every function is single-threaded, and what it writes for one row (token) does not depend on the other rows of the
// call: a sequence gives the same bits alone or in a batch. A sparse product gives the bits of the dense product of the
// same matrix with its zeros in place.
#pragma once

#include <cstdint>

#include "core/cpu_features.h"
#include "sparse/packed_matrix.h"

namespace espalier {

// y[t][r] = Σ_k W[r][k] · x[t][k] for the rows of tile rows [tile_begin, tile_end), float32 accumulation.
// x is [tokens][x_stride]; where cols is odd, x[t][cols] must be readable and zero. y is [tokens][y_stride].
using MatmulFn = void (*)(const PackedMatrix& weights, int64_t tile_begin, int64_t tile_end, const float* x,
                          int64_t x_stride, int64_t tokens, float* y, int64_t y_stride);

// One query head against the keys [first, last) of one KV head.
struct AttendTask {
  const float* query;     // [head_dim]
  const int32_t* blocks;  // block table of the sequence
  const float* keys;      // [block][head_dim][kKvBlock], already offset to this layer and KV head
  const float* values;    // [block][kKvBlock][head_dim]
  int64_t block_stride;   // floats from one block to the next
  int head_dim;           // a multiple of 2
  int64_t first;
  int64_t last;
  float scale;
  float* scores;  // scratch, (last − first) rounded up to whole blocks, plus one block
  float* out;     // [head_dim]
};

// Tokens in a block of the KV cache; the width of the vector that scores them.
inline constexpr int kKvBlock = 16;

struct CpuKernels {
  Isa isa;
  // By pattern, for bf16 values; and dense f32.
  MatmulFn dense_bf16;
  MatmulFn bitmap_bf16;
  MatmulFn nm_bf16;
  MatmulFn dense_f32;
  // out = x / sqrt(mean(x²) + epsilon) · weight
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float epsilon, float* out);
  // out = silu(gate) · up
  void (*silu_multiply)(const float* gate, const float* up, int64_t n, float* out);
  // Softmax in place.
  void (*softmax)(float* x, int64_t n);
  // log Σ exp(x)
  double (*log_sum_exp)(const float* x, int64_t n);
  // y += a · x
  void (*axpy)(float a, const float* x, int64_t n, float* y);
  void (*attend)(const AttendTask& task);

  MatmulFn matmul(const Format& format) const {
    if (format.values == DType::kF32) return dense_f32;
    switch (format.storage) {
      case Storage::kDense: return dense_bf16;
      case Storage::kBitmap: return bitmap_bf16;
      case Storage::kNm: return nm_bf16;
    }
    return dense_bf16;
  }
};

// The set that cpu_features().selected names.
const CpuKernels& cpu_kernels();
// The set of one instruction set, or nullptr where this build or processor lacks it.
const CpuKernels* cpu_kernels(Isa isa);

}  // namespace espalier
