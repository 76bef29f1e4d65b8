// What the codes of a packed matrix stand for.
#pragma once

#include <cstdint>

#include "sparse/format.h"

namespace espalier {

// A code is what is stored of an element, before masks drop some and int4 shares bytes. f32 and bf16: the bits. int8:
// q + 128. int4: q + 8. This is the one of a weight that is not stored.
inline uint32_t zero_code(Values values) { return values == Values::kInt8 ? 128 : values == Values::kInt4 ? 8 : 0; }

// The weight that a code of row r in group g stands for; `scales` are those of the tile row, f16 [groups][16].
float decode(Values values, uint32_t code, const uint16_t* scales, int64_t group, int row);

}  // namespace espalier
