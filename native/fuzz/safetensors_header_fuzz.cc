// Feeds arbitrary bytes to the header parser as a whole file. What it accepts must keep the promises of its header
// file.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string_view>

#include "checkpoint/safetensors_header.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void check(const espalier::SafetensorsHeader& header, uint64_t data_begin, uint64_t file_size) {
  std::set<std::string_view> names;
  uint64_t total = 0;
  for (const espalier::TensorInfo& tensor : header.tensors) {
    require(names.insert(tensor.name).second);
    require(tensor.name.size() <= 4096);
    require(data_begin <= tensor.begin && tensor.begin <= tensor.end && tensor.end <= file_size);
    unsigned __int128 bits = static_cast<unsigned>(espalier::dtype_bits(tensor.dtype));
    for (const int64_t dimension : tensor.shape) bits *= static_cast<uint64_t>(dimension);
    require(bits == static_cast<unsigned __int128>(tensor.end - tensor.begin) * 8);
    total += tensor.end - tensor.begin;
  }
  // In bounds, and as many bytes as the file holds: with tiling checked these two leave no overlap and no hole.
  require(data_begin + total == file_size);
  std::set<std::string_view> keys;
  for (const auto& [key, value] : header.metadata) require(keys.insert(key).second);
}

}  // namespace

// The first byte picks how many data bytes follow the rest, so that the fuzzer need not carry them.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view json(reinterpret_cast<const char*>(data) + 1, size - 1);
  const uint64_t file_size = 8 + json.size() + data[0];
  const auto result = espalier::parse_safetensors_header(json, file_size);
  if (result.is_ok()) {
    check(result.value(), 8 + json.size(), file_size);
  } else {
    require(!result.status().message().empty() && result.status().message().size() < 20'000);
  }
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const auto length = espalier::safetensors_header_length(file.substr(0, 8), size);
  if (length.is_ok()) require(length.value() <= size - 8);
  return 0;
}
