// How the matrices of a model are held in memory.
#pragma once

#include <cstdint>

namespace espalier {

// What the elements of a matrix become. kSource: bf16 stays bf16, f16 and f32 become f32.
enum class Precision : uint8_t { kSource, kBf16, kInt8, kInt4 };

// How a matrix is held.
struct WeightPolicy {
  Precision precision = Precision::kSource;
  bool sparse = true;   // with enough zeros as bitmap or n:m, where this machine gains from it
  bool mapped = false;  // packed weights stay where their file is mapped, else they are copied into large pages
};

}  // namespace espalier
