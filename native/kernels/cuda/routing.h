// The router on the GPU: logits, choice and gates as moe/router.h has them, and which rows a product takes together.
// Pointers are to device memory; nothing is allocated; an error is that of the launch.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "kernels/cuda/parts.h"

struct CUstream_st;

namespace espalier::cuda {

// The most router rows, and the most experts of a token.
inline constexpr int kMostExperts = 1024;
inline constexpr int kMostChosen = 64;

struct RouteTask {
  int tokens = 0;
  int rows = 0;  // of the router
  int width = 0;
  int top_k = 1;
  bool renormalise = false;
  bool sigmoid = false;  // else softmax
  int groups = 1;
  int top_groups = 1;
  float scaling = 1;
  const float* x = nullptr;           // [tokens][width]
  const void* weights = nullptr;      // [rows][width]
  bool weights_are_bf16 = true;       // else float
  const float* bias = nullptr;        // [rows], added for the choice only, or nullptr
  const float* skip_below = nullptr;  // [top_k − 1], or nullptr
  const int32_t* expert_of_row = nullptr;
  float* logits = nullptr;        // [tokens][rows]
  int32_t* unfinished = nullptr;  // [tokens], zeros before and after
  int32_t* experts = nullptr;     // [tokens][top_k], negative where one is left out
  float* gates = nullptr;         // [tokens][top_k]
  // [tokens][top_k]: the number of the pair, negative where it is left out; or nullptr.
  int32_t* slots = nullptr;
};
Status route(const RouteTask& task, CUstream_st* stream);

// Collects the (token, expert) pairs of an expert into groups of `group_tokens` places for a product: group g is of
// group_experts[g], its place n of token inputs[g · group_tokens + n], and slots says at which place each pair is.
// Groups and places that nothing is left for are negative.
struct GroupTask {
  int tokens = 0;
  int top_k = 1;
  int experts_count = 0;
  int group_tokens = 1;
  int groups = 0;                    // at least most_groups
  const int32_t* experts = nullptr;  // [tokens][top_k]
  int32_t* group_experts = nullptr;  // [groups]
  int32_t* inputs = nullptr;         // [groups][group_tokens]
  int32_t* slots = nullptr;          // [tokens][top_k]
};
// Groups that any routing of so many tokens fits in.
int most_groups(int tokens, int top_k, int experts, int group_tokens);
Status group_rows(const GroupTask& task, CUstream_st* stream);

// to[slot] = from[inputs[slot]], bit for bit; slots whose input is negative are left alone. Strides are a multiple of
// 32, the same on both sides.
struct GatherTask {
  int slots = 0;
  const int32_t* inputs = nullptr;  // [slots]
  PartRows from;
  PartRows to;
};
Status gather_rows(const GatherTask& task, CUstream_st* stream);

}  // namespace espalier::cuda
