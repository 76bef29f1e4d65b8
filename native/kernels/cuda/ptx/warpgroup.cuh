// Products of warpgroups on the tensor cores (compute capability 9.0a): 64 rows that four warps hold in registers, by
// tokens in shared memory; float32 sums, bf16 operands. They run on while the warps do something else: neither their
// operands nor their sums may be touched before a wait.
#pragma once

#include <cstdint>

namespace espalier::cuda::ptx {

#define ESPALIER_SUMS_8(c, i)                                                                                       \
  "+f"((c)[i]), "+f"((c)[(i) + 1]), "+f"((c)[(i) + 2]), "+f"((c)[(i) + 3]), "+f"((c)[(i) + 4]), "+f"((c)[(i) + 5]), \
      "+f"((c)[(i) + 6]), "+f"((c)[(i) + 7])
#define ESPALIER_SUMS_16(c, i) ESPALIER_SUMS_8(c, i), ESPALIER_SUMS_8(c, (i) + 8)
#define ESPALIER_SUMS_32(c, i) ESPALIER_SUMS_16(c, i), ESPALIER_SUMS_16(c, (i) + 16)
#define ESPALIER_SUMS_64(c, i) ESPALIER_SUMS_32(c, i), ESPALIER_SUMS_32(c, (i) + 32)
#define ESPALIER_SUMS_128(c, i) ESPALIER_SUMS_64(c, i), ESPALIER_SUMS_64(c, (i) + 64)

#define ESPALIER_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define ESPALIER_NAMES_32 \
  ESPALIER_NAMES_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ESPALIER_NAMES_64                                                            \
  ESPALIER_NAMES_32                                                                  \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ESPALIER_NAMES_128                                                                       \
  ESPALIER_NAMES_64                                                                              \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define ESPALIER_PRODUCT(kTokens, kSums, a0, a1, a2, a3, desc)                                           \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #kTokens "k16.f32.bf16.bf16 {" ESPALIER_NAMES_##kSums \
               "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #desc ", 1, 1, 1, 0;"                    \
               : ESPALIER_SUMS_##kSums(sums, 0)                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define ESPALIER_SPARSE_PRODUCT(kTokens, kSums, a0, a1, a2, a3, desc, where, selector)                             \
  asm volatile("wgmma.mma_async.sp.sync.aligned.m64n" #kTokens "k32.f32.bf16.bf16 {" ESPALIER_NAMES_##kSums        \
               "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #desc ", %" #where ", %" #selector ", 1, 1, 1, 0;" \
               : ESPALIER_SUMS_##kSums(sums, 0)                                                                    \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(positions), "n"(kSelector))

// sums += a · b for a 64 × 16 and b 16 × kTokens. A warp's registers are as those of mma m16n8k16, for each 8 tokens.
template <int kTokens>
__device__ __forceinline__ void warpgroup_product(float (&sums)[kTokens / 2], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kTokens == 32 || kTokens == 64 || kTokens == 128 || kTokens == 256);
  if constexpr (kTokens == 32) {
    ESPALIER_PRODUCT(32, 16, 16, 17, 18, 19, 20);
  } else if constexpr (kTokens == 64) {
    ESPALIER_PRODUCT(64, 32, 32, 33, 34, 35, 36);
  } else if constexpr (kTokens == 128) {
    ESPALIER_PRODUCT(128, 64, 64, 65, 66, 67, 68);
  } else {
    ESPALIER_PRODUCT(256, 128, 128, 129, 130, 131, 132);
  }
}

// The same with a in shared memory.
template <int kTokens>
__device__ __forceinline__ void warpgroup_product(float (&sums)[kTokens / 2], uint64_t a, uint64_t b) {
  static_assert(kTokens == 256);
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" ESPALIER_NAMES_128
               "}, %128, %129, 1, 1, 1, 0, 0;"
               : ESPALIER_SUMS_128(sums, 0)
               : "l"(a), "l"(b));
}

// The same for a 64 × 32 of which two in four are stored: registers as those of mma.sp m16n8k32, where lanes
// 2 · kSelector and 2 · kSelector + 1 of each four give the positions.
template <int kTokens, int kSelector>
__device__ __forceinline__ void warpgroup_sparse_product(float (&sums)[kTokens / 2], const uint4& a, uint32_t positions,
                                                         uint64_t b) {
  static_assert(kTokens == 32 || kTokens == 64 || kTokens == 128 || kTokens == 256);
  if constexpr (kTokens == 32) {
    ESPALIER_SPARSE_PRODUCT(32, 16, 16, 17, 18, 19, 20, 21, 22);
  } else if constexpr (kTokens == 64) {
    ESPALIER_SPARSE_PRODUCT(64, 32, 32, 33, 34, 35, 36, 37, 38);
  } else if constexpr (kTokens == 128) {
    ESPALIER_SPARSE_PRODUCT(128, 64, 64, 65, 66, 67, 68, 69, 70);
  } else {
    ESPALIER_SPARSE_PRODUCT(256, 128, 128, 129, 130, 131, 132, 133, 134);
  }
}

// Keeps the compiler from moving what is done with a register of products across this place.
__device__ __forceinline__ void settle(uint32_t& word) { asm volatile("" : "+r"(word)::"memory"); }
__device__ __forceinline__ void settle(float& value) { asm volatile("" : "+f"(value)::"memory"); }

// Before products whose registers something else has written.
__device__ __forceinline__ void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products.
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Returns when all but the last kLeft groups are done.
template <int kLeft>
__device__ __forceinline__ void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// The registers of a warp of the whole block may be shared out anew: all warps of a warpgroup call it.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#undef ESPALIER_PRODUCT
#undef ESPALIER_SPARSE_PRODUCT
#undef ESPALIER_NAMES_16
#undef ESPALIER_NAMES_32
#undef ESPALIER_NAMES_64
#undef ESPALIER_NAMES_128
#undef ESPALIER_SUMS_8
#undef ESPALIER_SUMS_16
#undef ESPALIER_SUMS_32
#undef ESPALIER_SUMS_64
#undef ESPALIER_SUMS_128

}  // namespace espalier::cuda::ptx
