// What happens to the rows of a step between products. Pointers are to device memory; nothing is allocated; an error is
// that of the launch.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "kernels/cuda/parts.h"

struct CUstream_st;

namespace espalier::cuda {

// The widest row of add_and_norm.
inline constexpr int kMostWidth = 12288;
// The most rows that it adds to one.
inline constexpr int kMostTerms = 64;

// hidden[row] = table[tokens[row]], and the cosines and sines of each row's position (see RopeSpec).
struct EmbedTask {
  int rows = 0;
  int width = 0;
  const int32_t* tokens = nullptr;
  const int32_t* positions = nullptr;
  const void* table = nullptr;  // [vocabulary][width]; without: `hidden` stays as it is
  bool table_is_bf16 = true;    // else float
  float* hidden = nullptr;      // [rows][width]
  const float* inverse_frequencies = nullptr;
  int half = 0;
  float scale = 1;
  float* cosines = nullptr;  // [rows][half]
  float* sines = nullptr;
};
Status embed(const EmbedTask& task, CUstream_st* stream);

// hidden[row] += Σ_j gates[row][j] · source[slots[row][j]] + bias; then the RMSNorm of the row, times `weight`.
struct NormTask {
  int rows = 0;
  int width = 0;  // at most kMostWidth
  float* hidden = nullptr;
  const int32_t* pick = nullptr;  // [rows] rows of `hidden` to norm; then nothing may be added. Without: in order
  const float* source = nullptr;  // [slots][width]; without: nothing is added
  const float* bias = nullptr;
  const int32_t* slots = nullptr;  // [rows][terms], a negative one is left out; without: slot `row`, one term
  const float* gates = nullptr;    // [rows][terms]; without: 1
  int terms = 1;                   // at most kMostTerms
  const float* weight = nullptr;   // [width]; without: no norm
  float epsilon = 0;
  PartRows out;                 // of the norm
  float* out_floats = nullptr;  // of the norm, or nullptr
};
Status add_and_norm(const NormTask& task, CUstream_st* stream);

// For each row its natural log-probability of targets[row] by `logits` [rows][width].
struct ScoreTask {
  int rows = 0;
  int width = 0;
  const float* logits = nullptr;
  const int32_t* targets = nullptr;
  double* scores = nullptr;
};
Status score(const ScoreTask& task, CUstream_st* stream);

// For each row of `logits` [rows][width] the place of its largest, of equal ones the first.
struct LargestTask {
  int rows = 0;
  int width = 0;
  const float* logits = nullptr;
  int32_t* places = nullptr;
};
Status find_largest(const LargestTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
