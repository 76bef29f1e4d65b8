// The formats a weight matrix can be packed in.
#pragma once

#include <cstdint>
#include <string>

namespace espalier {

// Rows of a tile row; a tile row's vectors have one lane for each.
inline constexpr int kTileRows = 16;
// Inputs that share a scale in int8 and int4.
inline constexpr int kGroup = 64;

// Which elements are stored.
enum class Storage : uint8_t { kDense, kBitmap, kNm };

// How a stored element is represented.
enum class Values : uint8_t { kBf16, kF32, kInt8, kInt4 };

struct Format {
  Storage storage = Storage::kDense;
  Values values = Values::kBf16;
  int n = 0;  // n:m only
  int m = 0;

  bool operator==(const Format&) const = default;
  // "dense bf16", "bitmap int4", "2:4 int8", …
  std::string name() const;
};

// Whether a matrix of `cols` inputs can be packed so. f32 is dense only; n:m needs an even m that divides cols, for
// int8 and int4 one of 4, 8, 16, 32 and 64 (whole vectors, within a group of 64), and cols a multiple of 64.
bool format_exists(const Format& format, int64_t cols);

inline bool is_quantised(Values values) { return values == Values::kInt8 || values == Values::kInt4; }

// Inputs that one 64-byte vector spans before int4 packs two of them together.
inline int vector_step(Values values) {
  switch (values) {
    case Values::kF32: return 1;
    case Values::kBf16: return 2;
    case Values::kInt8:
    case Values::kInt4: return 4;
  }
  return 1;
}

}  // namespace espalier
