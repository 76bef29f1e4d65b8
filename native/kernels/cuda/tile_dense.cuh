// A tile of dense weights as products take it.
#pragma once

#include "kernels/cuda/wide.cuh"

namespace espalier::cuda {

struct DenseSize {
  __device__ static uint32_t bytes(const ProductArgs&) { return kDenseBytes; }
};

struct DenseTile {
  using Source = FixedSource<DenseSize>;
  using Operand = ExpandedOperand<DenseTile>;
  using Lane = int;

  __device__ static constexpr int input(int quarter, int t) { return quarter * 32 + t * 8; }
  __device__ static uint4 arrange(uint4 b, int) { return b; }

  __device__ void begin(const ProductArgs&, uint32_t stage, int lane) { values_ = stage + lane * 16; }

  template <int kQuarter, int kHalf>
  __device__ void expand(uint32_t (&a)[4]) {
    if (kHalf == 0) {
      upper_ = ptx::load_shared_16(values_ + 2 * kQuarter * 512);
      lower_ = ptx::load_shared_16(values_ + (2 * kQuarter + 1) * 512);
    }
    a[0] = kHalf == 0 ? upper_.x : upper_.z;
    a[1] = kHalf == 0 ? lower_.x : lower_.z;
    a[2] = kHalf == 0 ? upper_.y : upper_.w;
    a[3] = kHalf == 0 ? lower_.y : lower_.w;
  }
  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    multiply_expanded<kQuarter>(*this, acc, b);
  }

 private:
  uint32_t values_;
  uint4 upper_;
  uint4 lower_;
};

}  // namespace espalier::cuda
