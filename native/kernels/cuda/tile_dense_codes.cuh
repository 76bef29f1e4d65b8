// A tile of dense weights of 8 bits as products take it.
#pragma once

#include "kernels/cuda/code_words.cuh"
#include "kernels/cuda/wide.cuh"

namespace espalier::cuda {

struct DenseCodesSize {
  __device__ static uint32_t bytes(const ProductArgs&) { return kDenseCodesBytes; }
};

struct DenseCodesTile {
  using Source = FixedSource<DenseCodesSize>;
  using Operand = ExpandedOperand<DenseCodesTile>;
  using Lane = int;

  __device__ static constexpr int input(int quarter, int t) { return quarter * 32 + t * 8; }
  __device__ static uint4 arrange(uint4 b, int) { return b; }

  __device__ void begin(const ProductArgs&, uint32_t stage, int lane) {
    codes_ = stage + lane * 16;
    scales_.load(stage + kDenseCodesBytes - kScaleBytes, lane);
  }

  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    if (kQuarter % 2 == 0) {
#pragma unroll
      for (auto& of_block : sums_) {
#pragma unroll
        for (float& sum : of_block) sum = 0;
      }
    }
    uint32_t a[4];
    codes<kQuarter, 0>(a);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) ptx::mma_m16n8k16(sums_[i], a, b[i].x, b[i].y);
    codes<kQuarter, 1>(a);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) ptx::mma_m16n8k16(sums_[i], a, b[i].z, b[i].w);
    if (kQuarter % 2 == 1) scales_.add<kQuarter / 2>(acc, sums_);
  }

  // The weights, rounded to bf16.
  template <int kQuarter, int kHalf>
  __device__ void expand(uint32_t (&a)[4]) {
    codes<kQuarter, kHalf>(a);
    a[0] = scales_.round<kQuarter / 2, 0>(a[0]);
    a[1] = scales_.round<kQuarter / 2, 1>(a[1]);
    a[2] = scales_.round<kQuarter / 2, 0>(a[2]);
    a[3] = scales_.round<kQuarter / 2, 1>(a[3]);
  }

 private:
  template <int kQuarter, int kHalf>
  __device__ __forceinline__ void codes(uint32_t (&a)[4]) {
    if (kHalf == 0) words_ = ptx::load_shared_16(codes_ + kQuarter * 512);
    split_codes(kHalf == 0 ? words_.x : words_.z, a[0], a[2]);
    split_codes(kHalf == 0 ? words_.y : words_.w, a[1], a[3]);
  }

  uint32_t codes_;
  CodeScales scales_;
  uint4 words_;
  float sums_[2][4];  // of a group
};

}  // namespace espalier::cuda
