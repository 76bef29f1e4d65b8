// Rows of a router's matrix, or values of its bias, for other experts.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"

namespace espalier {

// Row i of the result is the mean of the rows that rows[i] names of a [.., cols] matrix, rounded to its element type; a
// single row keeps its bytes.
std::vector<uint8_t> average_rows(DType dtype, const uint8_t* matrix, int64_t cols,
                                  const std::vector<std::vector<int32_t>>& rows);

}  // namespace espalier
