// Activations as products want them: rows that are sums of bf16 rows (see product.h).
#pragma once

#include <cstdint>

namespace espalier::cuda {

struct PartRows {
  uint16_t* data = nullptr;  // [rows][parts][stride]
  int parts = 1;
  int stride = 0;  // the width, up to a multiple of 32; what is behind the width must be zeros
};

// The stride for rows of `width`.
constexpr int part_stride(int64_t width) { return static_cast<int>((width + 31) / 32 * 32); }

}  // namespace espalier::cuda
