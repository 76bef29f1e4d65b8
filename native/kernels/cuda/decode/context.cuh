// What the warps of a block of the decode kernel share.
#pragma once

#include "kernels/cuda/decode/decode.h"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/memory.cuh"

namespace espalier::cuda {

// The warps of a block that compute, and all threads: those that fetch are a warp of a group of four, as registers are
// handed out by groups.
inline constexpr int kDecodeWarps = 8;
inline constexpr int kDecodeThreads = kDecodeWarps * 32;
inline constexpr int kDecodeBlock = kDecodeThreads + 128;
static_assert(kDecodeWarps <= 32);

// The most tiles that a ring holds.
inline constexpr int kTilesAhead = 16;
// Bytes that a warp has on their way: more would make everything else that is read wait longer.
inline constexpr int kBytesOnTheWay = 9216;
// The most elements of a head.
inline constexpr int kDecodeDim = 128;

// What warps must know of the layer at hand and the next, in shared memory.
struct DecodeContext {
  DecodeLayer layers[2];  // layer i at i % 2
  int experts[kMostChosen];
  float gates[kMostChosen];
  int kept;              // of the experts
  uint32_t layers_done;  // before this launch
  // The row's place in its sequence, and in the KV cache.
  int position;
  const int32_t* table;
  float cosines[kDecodeDim / 2];
  float sines[kDecodeDim / 2];
  uint64_t barriers[kDecodeWarps][kTilesAhead];  // a tile has come
  // Bytes that a warp has done with since the start, and tiles.
  uint2 done[kDecodeWarps];
  // The tiles of the products before this one, counted from the first layer's kQkv, are known.
  uint2 open;
};

// What the place of a ring is a multiple of, as tiles of quads want it.
inline constexpr int kRingAlignment = 256;

// A barrier of the warps that compute; teams of them use the first ones.
__device__ __forceinline__ void sync_workers() { ptx::named_barrier(15, kDecodeThreads); }

// The parts of a block's shared memory whose sizes depend on the model.
struct SharedMemory {
  float* residual;
  uint16_t* x;
  uint8_t* scratch;

  __device__ SharedMemory(const DecodeTask& task, uint8_t* memory)
      : residual(reinterpret_cast<float*>(memory)),
        x(reinterpret_cast<uint16_t*>(memory + task.hidden * sizeof(float))),
        scratch(memory + task.hidden * sizeof(float) + task.room.x) {}
  __device__ uint32_t ring(const DecodeTask& task, int warp) const {
    const uint32_t rings = ptx::shared_address(scratch + task.room.scratch) + kRingAlignment - 1;
    return rings / kRingAlignment * kRingAlignment + warp * task.room.ring;
  }
};

// By so many threads. The layer before the one at hand is no longer used, and whoever uses this one waits for the block
// first.
__device__ __forceinline__ void load_layer(const DecodeTask& task, DecodeContext& context, int index, int thread,
                                           int threads) {
  static_assert(sizeof(DecodeLayer) % 8 == 0);
  const auto* from = reinterpret_cast<const uint64_t*>(task.of_layers + index);
  auto* to = reinterpret_cast<uint64_t*>(&context.layers[index % 2]);
  for (int i = thread; i < static_cast<int>(sizeof(DecodeLayer) / 8); i += threads) to[i] = from[i];
}

// What all warps find in shared memory; all of them call it.
__device__ __forceinline__ void begin_decode(const DecodeTask& task, const SharedMemory& shared,
                                             DecodeContext& context) {
  const int thread = threadIdx.x;
  load_layer(task, context, 0, thread, kDecodeBlock);
  if (thread < task.heads.head_dim / 2) {
    context.cosines[thread] = task.cosines[thread];
    context.sines[thread] = task.sines[thread];
  }
  for (int i = thread; i < task.hidden; i += kDecodeBlock) shared.residual[i] = task.residual[i];
  if (thread < kDecodeWarps) {
    for (int i = 0; i < kTilesAhead; ++i) ptx::barrier_init(ptx::shared_address(&context.barriers[thread][i]), 1);
    ptx::barrier_init_fence();
    context.done[thread] = {};
  }
  if (thread == 0) {
    context.position = task.places.positions[0];
    context.table = task.places.blocks + task.places.tables[0];
    context.kept = 0;
    context.layers_done = *task.layers_done;
    context.open = {kGateUp, 0};
  }
  __syncthreads();
}

}  // namespace espalier::cuda
