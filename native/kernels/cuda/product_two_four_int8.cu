// 2:4 of 8 bits: codes become bf16 numbers in two and a half instructions a pair, positions go to the tensor cores as
// they lie, and scales multiply the sums of 64 inputs.
#include "kernels/cuda/decode/decode_kernel.cuh"
#include "kernels/cuda/tile_dense_codes.cuh"
#include "kernels/cuda/transpose.cuh"

namespace espalier::cuda {
namespace {

struct TwoFourCodesSize {
  __device__ static uint32_t bytes(const ProductArgs&) { return kTwoFourCodesBytes; }
};

struct TwoFourCodesOperand;

struct TwoFourCodesTile {
  using Source = FixedSource<TwoFourCodesSize>;
  using Operand = TwoFourCodesOperand;
  using Lane = int;

  __device__ static int input(int quarter, int t) { return quarter * 32 + t * 8; }
  // As for values of bf16.
  __device__ static uint4 arrange(uint4 b, int t) { return transpose(b, t); }

  __device__ void begin(const ProductArgs&, uint32_t stage, int lane) {
    codes_ = stage + lane * 16;
    positions_ = ptx::load_shared_8(stage + 2 * 512 + lane * 8);
    scales_.load(stage + kTwoFourCodesBytes - kScaleBytes, lane);
  }

  template <int kQuarter, int kBlocks>
  __device__ void multiply(float (&acc)[kBlocks][4], const uint4 (&b)[kBlocks]) {
    constexpr int kHalf = kQuarter / 2;
    if (kQuarter % 2 == 0) {
      words_ = ptx::load_shared_16(codes_ + kHalf * 512);
#pragma unroll
      for (auto& of_block : sums_) {
#pragma unroll
        for (float& sum : of_block) sum = 0;
      }
    }
    const uint4 a = values<kQuarter>();
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      ptx::mma_sparse_m16n8k32<kQuarter % 2>(sums_[i], a, b[i], kHalf == 0 ? positions_.x : positions_.y);
    }
    if (kQuarter % 2 == 1) scales_.add<kHalf>(acc, sums_);
  }

 private:
  friend TwoFourCodesOperand;

  // The A registers of a quarter, once words_ are those of its half.
  template <int kQuarter>
  __device__ __forceinline__ uint4 values() const {
    uint4 a;
    split_codes(kQuarter % 2 == 0 ? words_.x : words_.z, a.x, a.y);
    split_codes(kQuarter % 2 == 0 ? words_.y : words_.w, a.z, a.w);
    return a;
  }

  uint32_t codes_;
  uint2 positions_;
  CodeScales scales_;
  uint4 words_;
  float sums_[2][4];  // of a group
};

struct TwoFourCodesOperand : TwoFourValues {
  // A template, as all of what only products of many tokens call: not all architectures have those.
  template <class Tile>
  __device__ __forceinline__ void load(Tile& tile, int, uint32_t) {
    load_half<0>(tile);
    load_half<1>(tile);
    positions[0] = tile.positions_.x;
    positions[1] = tile.positions_.y;
  }

 private:
  template <int kHalf>
  __device__ __forceinline__ void load_half(TwoFourCodesTile& tile) {
    tile.words_ = ptx::load_shared_16(tile.codes_ + kHalf * 512);
    a[2 * kHalf] = rounded<kHalf>(tile.scales_, tile.values<2 * kHalf>());
    a[2 * kHalf + 1] = rounded<kHalf>(tile.scales_, tile.values<2 * kHalf + 1>());
  }
  template <int kPart>
  __device__ __forceinline__ static uint4 rounded(const CodeScales& scales, const uint4& codes) {
    return {scales.round<kPart, 0>(codes.x), scales.round<kPart, 1>(codes.y), scales.round<kPart, 0>(codes.z),
            scales.round<kPart, 1>(codes.w)};
  }
};

}  // namespace

// Of 12 warps, teams divide what the usual widths leave evenly. With two blocks on a multiprocessor, one ends while the
// other works; where launches are brief, a third is the next launch's, whose first tiles come meanwhile.
ProductKernel two_four_int8_kernel(int tokens, bool is_brief) {
  if (tokens <= 8 && is_brief) return make_kernel_of<TwoFourCodesTile, StagedInputs<1, 2>, 2, 6, 3>(tokens);
  if (tokens <= 8) return make_kernel_of<TwoFourCodesTile, StagedInputs<1, 2>, 1, 12, 2>(tokens);
  return make_kernel_of<TwoFourCodesTile, StagedInputs<2, 1>, 2, 16>(tokens);
}

WideKernel two_four_int8_wide(int tokens) { return choose_wide<TwoFourCodesTile>(tokens); }

DecodeKernel two_four_int8_decode(bool kv_is_bf16) {
  return choose_decode<DenseCodesTile, TwoFourCodesTile>(kv_is_bf16);
}

}  // namespace espalier::cuda
