#include "prune/router_rows.h"

#include <cstring>

namespace espalier {

std::vector<uint8_t> average_rows(DType dtype, const uint8_t* matrix, int64_t cols,
                                  const std::vector<std::vector<int32_t>>& rows) {
  const size_t row_bytes = static_cast<size_t>(cols) * static_cast<size_t>(dtype_bits(dtype) / 8);
  std::vector<uint8_t> result(rows.size() * row_bytes);
  for (size_t i = 0; i < rows.size(); ++i) {
    uint8_t* out = result.data() + i * row_bytes;
    if (rows[i].size() == 1) {
      std::memcpy(out, matrix + static_cast<size_t>(rows[i][0]) * row_bytes, row_bytes);
      continue;
    }
    for (int64_t c = 0; c < cols; ++c) {
      double sum = 0;
      for (const int32_t row : rows[i]) sum += static_cast<double>(load_float(dtype, matrix, row * cols + c));
      store_float(dtype, out, c, static_cast<float>(sum / static_cast<double>(rows[i].size())));
    }
  }
  return result;
}

}  // namespace espalier
