#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx/async.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace espalier::cuda {
namespace {

// Eight warps, 2 × 4 of them, each with 64 × 64 of a tile's sums in its registers. Inputs come through a ring of stages
// in shared memory; both parts of x meet the same fragment of W, which is loaded once.
constexpr int kThreads = 256;
constexpr int kStages = 4;
constexpr int kDepth = 32;             // of a stage
constexpr int kRowBytes = kDepth * 2;  // of a part of a row in a stage
constexpr int kChunks = kRowBytes / 16;
constexpr int kRowsAtOnce = kThreads / kChunks;  // that the threads copy together
constexpr int kXBytes = kGemmRows * kRowBytes;
constexpr int kWeightBytes = kGemmCols * kRowBytes;
constexpr int kWarpTile = 64;
constexpr int kRowFragments = kWarpTile / 16;
constexpr int kColFragments = kWarpTile / 8;

template <int kWeightParts>
constexpr int kStageBytes = kGemmParts* kXBytes + kWeightParts* kWeightBytes;

// Chunks of a row are stored in an order that differs from row to row, so that eight rows' chunks of one number lie in
// different banks.
__device__ __forceinline__ uint32_t place_of(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row / 2 % kChunks)) * 16);
}

template <int kWeightParts>
__global__ void __launch_bounds__(kThreads, 1) gemm_kernel(const __grid_constant__ GemmTask task) {
  extern __shared__ __align__(128) uint8_t shared[];
  begin_kernel();
  // The last group that begins at or before this tile: empty ones begin where the next does.
  int low = 0;
  for (int high = task.group_count; high - low > 1;) {
    const int middle = (low + high) / 2;
    (task.groups[middle].first_tile <= blockIdx.x ? low : high) = middle;
  }
  const GemmGroup group = task.groups[low];
  const int row_tiles = (group.rows + kGemmRows - 1) / kGemmRows;
  // Tiles of the same weights run together.
  const int tile = blockIdx.x - group.first_tile;
  const int first_row = tile % row_tiles * kGemmRows;
  const int first_col = tile / row_tiles * kGemmCols;
  if (task.upper && first_col + kGemmCols <= first_row) return;

  const uint32_t base = ptx::shared_address(shared);
  const int thread = threadIdx.x;
  const int64_t depth = task.depth;
  const int own_row = thread / kChunks;
  const int own_chunk = thread % kChunks;
  constexpr int kXCopies = kGemmRows / kRowsAtOnce;
  constexpr int kWeightCopies = kGemmCols / kRowsAtOnce;
  const uint16_t* x_from[kXCopies];
  const uint16_t* weight_from[kWeightCopies];
  uint32_t x_bytes[kXCopies];
  uint32_t weight_bytes[kWeightCopies];
#pragma unroll
  for (int i = 0; i < kXCopies; ++i) {
    const int row = first_row + own_row + i * kRowsAtOnce;
    x_bytes[i] = row < group.rows ? 16 : 0;
    const int at = group.first_row + (row < group.rows ? row : 0);
    x_from[i] = task.x + (task.rows != nullptr ? task.rows[at] : at) * kGemmParts * depth + own_chunk * 8;
  }
#pragma unroll
  for (int i = 0; i < kWeightCopies; ++i) {
    const int col = first_col + own_row + i * kRowsAtOnce;
    weight_bytes[i] = col < task.cols ? 16 : 0;
    weight_from[i] = group.weights + (col < task.cols ? col : 0) * kWeightParts * depth + own_chunk * 8;
  }
  const int steps = task.depth / kDepth;
  const uint32_t own_place = place_of(own_row, own_chunk);
  static_assert(kRowsAtOnce / 2 % kChunks == 0, "rows that a thread copies are stored in the same order");
  const auto load = [&](int step) {
    if (step < steps) {
      const uint32_t to = base + step % kStages * kStageBytes<kWeightParts> + own_place;
#pragma unroll
      for (int i = 0; i < kXCopies; ++i) {
#pragma unroll
        for (int part = 0; part < kGemmParts; ++part) {
          ptx::async_copy_16(to + part * kXBytes + i * kRowsAtOnce * kRowBytes,
                             x_from[i] + part * depth + step * kDepth, x_bytes[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kWeightCopies; ++i) {
#pragma unroll
        for (int part = 0; part < kWeightParts; ++part) {
          ptx::async_copy_16(to + kGemmParts * kXBytes + part * kWeightBytes + i * kRowsAtOnce * kRowBytes,
                             weight_from[i] + part * depth + step * kDepth, weight_bytes[i]);
        }
      }
    }
    ptx::async_commit();
  };

  const int warp = thread / 32;
  const int lane = thread % 32;
  const int warp_row = warp % 2 * kWarpTile;
  const int warp_col = warp / 2 * kWarpTile;
  // Of the fragments' rows and chunks, those that this lane gives addresses of.
  const int x_row = warp_row + lane % 16;
  const int x_chunk = lane / 16;
  const int weight_row = warp_col + lane % 8 + lane / 16 * 8;
  const int weight_chunk = lane / 8 % 2;
  float sum[kRowFragments][kColFragments][4] = {};
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    ptx::async_wait<kStages - 2>();
    // All have what this step multiplies, and are done with the stage that is loaded into next.
    __syncthreads();
    load(step + kStages - 1);
    const uint32_t stage = base + step % kStages * kStageBytes<kWeightParts>;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int weight_part = 0; weight_part < kWeightParts; ++weight_part) {
        uint32_t w[kColFragments / 2][4];
        const uint32_t weights = stage + kGemmParts * kXBytes + weight_part * kWeightBytes;
#pragma unroll
        for (int j = 0; j < kColFragments / 2; ++j) {
          ptx::load_matrices(w[j], weights + place_of(weight_row + j * 16, half * 2 + weight_chunk));
        }
#pragma unroll
        for (int part = 0; part < kGemmParts - weight_part; ++part) {
          uint32_t x[kRowFragments][4];
#pragma unroll
          for (int i = 0; i < kRowFragments; ++i) {
            ptx::load_matrices(x[i], stage + part * kXBytes + place_of(x_row + i * 16, half * 2 + x_chunk));
          }
#pragma unroll
          for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
            for (int j = 0; j < kColFragments; ++j) {
              ptx::mma_m16n8k16(sum[i][j], x[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
            }
          }
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + warp_row + i * 16 + half * 8 + lane / 4;
      if (row >= group.rows) continue;
      float* y = task.y + static_cast<int64_t>(group.first_row + row) * task.cols;
#pragma unroll
      for (int j = 0; j < kColFragments; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int col = first_col + warp_col + j * 8 + lane % 4 * 2 + c;
          if (col < task.cols) y[col] = sum[i][j][half * 2 + c] + (task.accumulate ? y[col] : 0.0f);
        }
      }
    }
  }
}

template <int kWeightParts>
Status start(const GemmTask& task, cudaStream_t stream) {
  constexpr int kBytes = kStages * kStageBytes<kWeightParts>;
  ESPALIER_CUDA_TRY(
      cudaFuncSetAttribute(gemm_kernel<kWeightParts>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  return launch("gemm", gemm_kernel<kWeightParts>, {dim3(task.tiles), kThreads, kBytes}, stream, task);
}

}  // namespace

int32_t place_tiles(std::vector<GemmGroup>& groups, int64_t cols) {
  int64_t tiles = 0;
  for (GemmGroup& group : groups) {
    group.first_tile = static_cast<int32_t>(tiles);
    tiles += (group.rows + kGemmRows - 1) / kGemmRows * ((cols + kGemmCols - 1) / kGemmCols);
  }
  return static_cast<int32_t>(tiles);
}

Status gemm(const GemmTask& task, cudaStream_t stream) {
  if (task.depth % kDepth != 0 || task.weight_parts < 1 || task.weight_parts > 2) {
    return Status(Code::kInternal, "a product of many rows has a depth that is no multiple of 32, or too many parts");
  }
  if (task.tiles == 0) return Status::ok();
  return task.weight_parts == 1 ? start<1>(task, stream) : start<2>(task, stream);
}

}  // namespace espalier::cuda
