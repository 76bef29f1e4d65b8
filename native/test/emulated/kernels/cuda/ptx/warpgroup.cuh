#pragma once

#include "emulated/warpgroup.h"

namespace espalier::cuda::ptx {

template <int kTokens>
void warpgroup_product(float (&sums)[kTokens / 2], const uint32_t (&a)[4], uint64_t b) {
  emulated::warpgroup_product(sums, kTokens, a, b);
}
template <int kTokens>
void warpgroup_product(float (&sums)[kTokens / 2], uint64_t a, uint64_t b) {
  emulated::warpgroup_product(sums, kTokens, a, b);
}
template <int kTokens, int kSelector>
void warpgroup_sparse_product(float (&sums)[kTokens / 2], const uint4& a, uint32_t positions, uint64_t b) {
  emulated::warpgroup_sparse_product(sums, kTokens, a, positions, kSelector, b);
}
template <class T>
void settle(T&) {}
inline void warpgroup_fence() {}
inline void warpgroup_commit() { emulated::warpgroup_commit(); }
template <int kLeft>
void warpgroup_wait() {
  emulated::warpgroup_wait(kLeft);
}
template <int kRegisters>
void give_registers() {}
template <int kRegisters>
void take_registers() {}

}  // namespace espalier::cuda::ptx
