// What four neighbouring lanes have, by words instead of by lanes.
#pragma once

#include <cstdint>

namespace espalier::cuda {

// Four lanes with four words each: lane t has row t, and gets column t.
__device__ __forceinline__ uint4 transpose(uint4 r, int t) {
  const bool odd = (t & 1) != 0;
  uint32_t s0 = __shfl_xor_sync(~0u, odd ? r.x : r.y, 1);
  uint32_t s1 = __shfl_xor_sync(~0u, odd ? r.z : r.w, 1);
  r = odd ? uint4{s0, r.y, s1, r.w} : uint4{r.x, s0, r.z, s1};
  const bool high = (t & 2) != 0;
  s0 = __shfl_xor_sync(~0u, high ? r.x : r.z, 2);
  s1 = __shfl_xor_sync(~0u, high ? r.y : r.w, 2);
  return high ? uint4{s0, s1, r.z, r.w} : uint4{r.x, r.y, s0, s1};
}

}  // namespace espalier::cuda
