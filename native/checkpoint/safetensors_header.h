// The header of a safetensors file: an 8-byte little-endian length, then that many bytes of JSON, then the data of the
// tensors without gaps. A header that parses here has been checked whole: every range lies inside the file, the ranges
// tile the data exactly, each has the bytes that its shape and type need, and no name stands twice. White space before
// the JSON is accepted, as some writers pad there.
//
// Stricter than the format in three points that no real file meets: a name has at most 4 KB, a shape at most 64
// dimensions, and the product of the non-zero dimensions must fit (so that strides can be computed) wherever a zero
// stands. Metadata must not be null.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"

namespace espalier {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;  // each at most 2^53 - 1
  // Byte range [begin, end), counted from the start of the file.
  uint64_t begin = 0;
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // in the order of the header
  std::vector<std::pair<std::string, std::string>> metadata;
};

constexpr uint64_t kMaxHeaderBytes = 100'000'000;

// The number of JSON bytes, from the first bytes of a file (as many of its first 8 as it has).
Result<uint64_t> safetensors_header_length(std::string_view first_bytes, uint64_t file_size);

// `json` is the text that follows the length; file_size the size of the whole file.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, uint64_t file_size);

}  // namespace espalier
