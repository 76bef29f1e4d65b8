#include "sparse/tile.h"

#include <bit>

#include "core/dtype.h"

namespace espalier {

float decode(Values values, uint32_t code, const uint16_t* scales, int64_t group, int row) {
  switch (values) {
    case Values::kF32: return std::bit_cast<float>(code);
    case Values::kBf16: return bf16_to_float(static_cast<uint16_t>(code));
    case Values::kInt8:
    case Values::kInt4: {
      const int q = static_cast<int>(code) - static_cast<int>(zero_code(values));
      // A scale of int4 can be negative; + 0 makes its zero the one that counts as pruned.
      return static_cast<float>(q) * f16_to_float(scales[group * kTileRows + row]) + 0.0f;
    }
  }
  return 0;
}

}  // namespace espalier
