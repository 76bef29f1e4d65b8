// The body of panel_kernels_*.cc: each includes this once and is compiled for its own instruction set. Everything here
// has internal linkage, so no two compilations of it can be merged.
#pragma once

#include "prune/panel_kernels.h"
#include "prune/training_kernels_impl.h"

namespace espalier {
namespace {

// A vector that may lie at any address aligned to its element.
template <class T, int kBytes>
struct Vector {
  typedef T type __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
};

// One register block: kRows rows by two vectors.
template <class T, int kBytes, int kRows>
inline void update_block(int64_t depth, const T* a, const T* b, T alpha, T* c, int64_t stride) {
  using V = typename Vector<T, kBytes>::type;
  constexpr int kLanes = kBytes / sizeof(T);
  V sum[kRows][2] = {};
  for (int64_t k = 0; k < depth; ++k, a += kPanel, b += kPanel) {
    const V b0 = *reinterpret_cast<const V*>(b);
    const V b1 = *reinterpret_cast<const V*>(b + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      sum[i][0] += a[i] * b0;
      sum[i][1] += a[i] * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    V* out = reinterpret_cast<V*>(c + i * stride);
    out[0] += alpha * sum[i][0];
    out[1] += alpha * sum[i][1];
  }
}

template <class T, int kBytes, int kRows>
void update(int64_t depth, const T* a, const T* b, T alpha, T* c, int64_t stride) {
  constexpr int64_t kColumns = 2 * kBytes / sizeof(T);
  static_assert(kPanel % kRows == 0 && kPanel % kColumns == 0);
  for (int64_t j = 0; j < kPanel; j += kColumns) {
    for (int64_t i = 0; i < kPanel; i += kRows) {
      update_block<T, kBytes, kRows>(depth, a + i, b + j, alpha, c + i * stride + j, stride);
    }
  }
}

template <class T, int kBytes>
void eliminate(T* tile, int64_t count, const T* row, const T* factors) {
  using V = typename Vector<T, kBytes>::type;
  constexpr int kVectors = kPanel * sizeof(T) / kBytes;
  constexpr int kHeld = kVectors < 12 ? kVectors : 12;  // vectors of `row` kept in registers
  static_assert(kVectors % kHeld == 0);
  const V* source = reinterpret_cast<const V*>(row);
  for (int first = 0; first < kVectors; first += kHeld) {
    V held[kHeld];
#pragma GCC unroll 16
    for (int v = 0; v < kHeld; ++v) held[v] = source[first + v];
    V* target = reinterpret_cast<V*>(tile) + first;
    for (int64_t i = 0; i < count; ++i, target += kVectors) {
#pragma GCC unroll 16
      for (int v = 0; v < kHeld; ++v) target[v] -= factors[i] * held[v];
    }
  }
}

template <class T, int kBytes, int kRows>
inline void excess_block(int64_t depth, const T* a, const T* b, T* c) {
  using V = typename Vector<T, kBytes>::type;
  constexpr int kLanes = kBytes / sizeof(T);
  const V zero = {};
  V sum[kRows][2] = {};
  for (int64_t k = 0; k < depth; ++k, a += kPanel, b += kPanel) {
    const V b0 = *reinterpret_cast<const V*>(b);
    const V b1 = *reinterpret_cast<const V*>(b + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V d0 = a[i] - b0;
      const V d1 = a[i] - b1;
      sum[i][0] += d0 > zero ? d0 : zero;
      sum[i][1] += d1 > zero ? d1 : zero;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    V* out = reinterpret_cast<V*>(c + i * kPanel);
    out[0] += sum[i][0];
    out[1] += sum[i][1];
  }
}

template <class T, int kBytes, int kRows>
void excess(int64_t depth, const T* a, const T* b, T* c) {
  constexpr int64_t kColumns = 2 * kBytes / sizeof(T);
  static_assert(kPanel % kRows == 0 && kPanel % kColumns == 0);
  for (int64_t j = 0; j < kPanel; j += kColumns) {
    for (int64_t i = 0; i < kPanel; i += kRows) {
      excess_block<T, kBytes, kRows>(depth, a + i, b + j, c + i * kPanel + j);
    }
  }
}

template <int kBytes, int kRows>
constexpr PanelKernelSet make_panel_kernels() {
  return {{update<float, kBytes, kRows>, eliminate<float, kBytes>, excess<float, kBytes, kRows>},
          {update<double, kBytes, kRows>, eliminate<double, kBytes>, excess<double, kBytes, kRows>},
          {swiglu, swiglu_backward, adam, softmax_columns}};
}

}  // namespace
}  // namespace espalier
