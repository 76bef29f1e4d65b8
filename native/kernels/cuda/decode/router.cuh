// The router of a layer in the decode kernel: logits by all blocks, then the choice, which every block makes for
// itself.
#pragma once

#include "kernels/cuda/decode/rows.cuh"
#include "kernels/cuda/decode/words.cuh"
#include "kernels/cuda/routing_choice.cuh"

namespace espalier::cuda {

// Room in shared memory.
struct RouterRoom {
  Choice choice;
  float logits[kMostExperts];
  int16_t experts[kMostExperts];  // of the router's rows
  alignas(16) float x[];          // [hidden]
};

class Router {
 public:
  __device__ Router(const DecodeTask& task, DecodeContext& context, const Turn& turn, RouterRoom& room)
      : task_(task), context_(context), turn_(turn), room_(room) {}

  // Those of the block's rows, from the norm in the room.
  __device__ void find_logits(const DecodeLayer& layer) const {
    __shared__ float scratch[32];
    for (int row = blockIdx.x; row < task_.routing.rows; row += gridDim.x) {
      float sum = task_.router_is_bf16 ? product<__nv_bfloat16>(layer, row) : product<float>(layer, row);
      sum = worker_sum(sum, scratch);
      if (threadIdx.x == 0) store_word(words_of(task_, task_.words.logits, turn_) + row, sum, turn_.mark);
      sync_workers();
    }
  }

  // The experts of the row; a warp's.
  __device__ void choose(const DecodeLayer& layer) const {
    constexpr int kAhead = 4;
    const int lane = threadIdx.x % 32;
    const int rows = task_.routing.rows;
#pragma unroll 1
    for (int base = 0; base < rows; base += kAhead * 32) {
      const int first = base + lane;
      int experts[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) experts[j] = first + 32 * j < rows ? layer.expert_of_row[first + 32 * j] : 0;
      uint32_t found[kAhead];
      await_words(turn_.mark, found, [&](int j) {
        return first + 32 * j < rows ? words_of(task_, task_.words.logits, turn_) + first + 32 * j : nullptr;
      });
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (first + 32 * j >= rows) break;
        room_.experts[first + 32 * j] = static_cast<int16_t>(experts[j]);
        room_.logits[first + 32 * j] = value_of(found[j]);
      }
    }
    choose_experts(
        task_.routing, layer.correction_bias, layer.skip_below, [&](int row) { return room_.logits[row]; },
        room_.choice);
    for (int k = lane; k < room_.choice.kept; k += 32) {
      context_.experts[k] = room_.experts[room_.choice.rows[k]];
      context_.gates[k] = room_.choice.gates[k];
    }
    if (lane == 0) context_.kept = room_.choice.kept;
  }

  // All blocks have come to the router; a warp's.
  __device__ void await_blocks() const {
    constexpr int kAhead = 2;
#pragma unroll 1
    for (int first = 0; first < static_cast<int>(gridDim.x); first += kAhead * 32) {
      uint32_t found[kAhead];
      await_words(turn_.mark, found, [&](int j) {
        const int block = first + 32 * j + static_cast<int>(threadIdx.x % 32);
        return block < static_cast<int>(gridDim.x) ? words_of(task_, task_.words.blocks, turn_) + block : nullptr;
      });
    }
  }

 private:
  // A thread's part of a logit.
  template <class W>
  __device__ float product(const DecodeLayer& layer, int row) const {
    const W* weights = static_cast<const W*>(layer.router) + static_cast<int64_t>(row) * task_.hidden;
    float sum = 0;
    for (int i = threadIdx.x; i < task_.hidden / 4; i += kDecodeThreads) {
      const float4 w = load_four(weights + 4 * i);
      const float4 v = reinterpret_cast<const float4*>(room_.x)[i];
      sum += w.x * v.x + w.y * v.y + w.z * v.z + w.w * v.w;
    }
    return sum;
  }

  const DecodeTask& task_;
  DecodeContext& context_;
  const Turn turn_;
  RouterRoom& room_;
};

}  // namespace espalier::cuda
