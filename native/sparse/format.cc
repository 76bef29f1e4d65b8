#include "sparse/format.h"

namespace espalier {

std::string Format::name() const {
  static constexpr const char* kValues[] = {"bf16", "f32", "int8", "int4"};
  std::string result = storage == Storage::kDense ? "dense" : "bitmap";
  if (storage == Storage::kNm) {
    result = std::to_string(n);
    result += ':';
    result += std::to_string(m);
  }
  result += ' ';
  result += kValues[static_cast<int>(values)];
  return result;
}

bool format_exists(const Format& format, int64_t cols) {
  if (format.storage == Storage::kDense) return true;
  if (format.values == Values::kF32) return false;
  if (format.storage == Storage::kBitmap) return true;
  const int m = format.m;
  if (m <= 0 || m % 2 != 0 || format.n <= 0 || format.n > m || cols % m != 0) return false;
  if (format.values == Values::kBf16) return true;
  // A quantised tile row is padded to whole groups of 64 inputs, in whole n:m groups.
  return cols % kGroup == 0 && m % 4 == 0 && kGroup % m == 0;
}

}  // namespace espalier
