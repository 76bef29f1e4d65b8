#pragma once

#include "emulated/intrinsics.h"

namespace espalier::cuda::ptx {

inline uint32_t keep(uint32_t value) { return value; }
template <class T>
T* keep(T* pointer) {
  return pointer;
}

template <class T>
void advance(T*& pointer, int count) {
  pointer += count;
}

inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

inline bool elect_one() { return emulated::current().lane == 0; }

inline uint32_t inclusive_sum(uint32_t value) {
  emulated::together(~0u, value, "inclusive_sum", [](uint32_t* const* lanes, uint32_t) {
    for (int l = 1; l < emulated::kLanes; ++l) *lanes[l] += *lanes[l - 1];
  });
  return value;
}

}  // namespace espalier::cuda::ptx
