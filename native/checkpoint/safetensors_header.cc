#include "checkpoint/safetensors_header.h"

#include <algorithm>
#include <numeric>

#include "checkpoint/json_reader.h"

namespace espalier {
namespace {

constexpr size_t kMaxNameBytes = 4096;
constexpr size_t kMaxDimensions = 64;
constexpr uint64_t kMaxDimension = (uint64_t{1} << 53) - 1;

// Text from a file as it may stand in a message: short, on one line, without terminal escapes.
std::string shown(std::string_view text) {
  constexpr size_t kLimit = 120;
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool starts_character = (c & 0xc0) != 0x80;
    if (i >= kLimit && starts_character) return out + "…";
    if (c < 0x20 || c == 0x7f) {
      constexpr char kHex[] = "0123456789abcdef";
      out += {'\\', 'x', kHex[c >> 4], kHex[c & 15]};
    } else {
      out.push_back(static_cast<char>(c));
    }
  }
  return out;
}

std::string quoted(std::string_view text) { return '"' + shown(text) + '"'; }

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

Status tensor_error(Code code, const std::string& name, const std::string& problem) {
  return Status(code, "tensor " + quoted(name) + ": " + problem).with_tensor(name);
}

// Built by appending, as g++ 12 warns wrongly about `literal + std::to_string(…)` at -O3.
std::string range_text(const TensorInfo& tensor) {
  std::string out = "[";
  out += std::to_string(tensor.begin) + ", " + std::to_string(tensor.end);
  return out += "]";
}

class HeaderParser {
 public:
  explicit HeaderParser(std::string_view json) : reader_(json), size_(json.size()) {
    // The most entries that fit the text, so that the list never moves: at its full 100 MB that would double the peak.
    constexpr size_t kShortestEntry = 50;  // "":{"dtype":"U8","shape":[],"data_offsets":[0,0]},
    header_.tensors.reserve(json.size() / kShortestEntry + 1);
  }

  Result<SafetensorsHeader> parse() {
    ESPALIER_TRY(parse_members());
    reader_.peek();
    if (reader_.position() != size_) return malformed("text follows the closing brace");
    return std::move(header_);
  }

 private:
  Status malformed(const std::string& problem) const {
    return Status(Code::kHeaderJson,
                  "the header is not valid JSON: " + problem + " at byte " + std::to_string(reader_.position()));
  }
  Status malformed() const { return malformed(reader_.problem()); }
  // The same inside the entry of a tensor.
  Status malformed_in(const std::string& name, const char* problem) const {
    return malformed(problem + (", in the entry of tensor " + quoted(name)) + ",").with_tensor(name);
  }

  Status parse_members() {
    if (!reader_.take('{')) return malformed("it must be one object and start with {");
    if (reader_.take('}')) return Status::ok();
    do {
      std::string key;
      if (!reader_.read_string(&key)) return malformed();
      if (!reader_.take(':')) return malformed("a colon was expected");
      if (key == "__metadata__") {
        ESPALIER_TRY(parse_metadata());
      } else {
        ESPALIER_TRY(parse_tensor(std::move(key)));
      }
    } while (reader_.take(','));
    return reader_.take('}') ? Status::ok() : malformed("a comma or } was expected");
  }

  Status parse_metadata() {
    const auto bad = [](const std::string& problem) { return Status(Code::kMetadata, "__metadata__ " + problem); };
    if (has_metadata_) return bad("stands twice in the header");
    has_metadata_ = true;
    if (reader_.peek() != '{') return reader_.skip_value() ? bad("is not an object") : malformed();
    reader_.take('{');
    if (reader_.take('}')) return Status::ok();
    do {
      auto& [key, value] = header_.metadata.emplace_back();
      if (!reader_.read_string(&key)) return malformed();
      if (!reader_.take(':')) return malformed("a colon was expected");
      if (reader_.peek() != '"') {
        return reader_.skip_value() ? bad("holds a value that is not a string, under " + quoted(key)) : malformed();
      }
      if (!reader_.read_string(&value)) return malformed();
    } while (reader_.take(','));
    if (!reader_.take('}')) return malformed("a comma or } was expected");
    std::vector<std::string_view> keys;
    for (const auto& [key, value] : header_.metadata) keys.push_back(key);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    return twice == keys.end() ? Status::ok() : bad("holds " + quoted(*twice) + " twice");
  }

  Status parse_tensor(std::string name) {
    if (name.size() > kMaxNameBytes) {
      const std::string start = shown(name);
      return Status(Code::kName, "a tensor name has " + std::to_string(name.size()) + " bytes; at most " +
                                     std::to_string(kMaxNameBytes) + " are allowed. It starts with \"" + start + '"')
          .with_tensor(start);
    }
    TensorInfo tensor;
    tensor.name = std::move(name);
    bool has_dtype = false, has_shape = false, has_offsets = false;
    if (!reader_.take('{')) {
      return reader_.skip_value() ? tensor_error(Code::kHeaderJson, tensor.name, "its entry is not an object")
                                  : malformed_in(tensor.name, reader_.problem());
    }
    if (!reader_.take('}')) {
      do {
        std::string key;
        if (!reader_.read_string(&key)) return malformed_in(tensor.name, reader_.problem());
        if (!reader_.take(':')) return malformed_in(tensor.name, "a colon was expected");
        bool* const seen = key == "dtype"          ? &has_dtype
                           : key == "shape"        ? &has_shape
                           : key == "data_offsets" ? &has_offsets
                                                   : nullptr;
        if (seen == nullptr) {
          if (!reader_.skip_value()) return malformed_in(tensor.name, reader_.problem());
          continue;
        }
        if (*seen) return tensor_error(Code::kDuplicateKey, tensor.name, quoted(key) + " stands twice in its entry");
        *seen = true;
        ESPALIER_TRY(seen == &has_dtype   ? parse_dtype(&tensor)
                     : seen == &has_shape ? parse_shape(&tensor)
                                          : parse_offsets(&tensor));
      } while (reader_.take(','));
      if (!reader_.take('}')) return malformed_in(tensor.name, "a comma or } was expected");
    }
    if (!has_dtype || !has_shape || !has_offsets) {
      const char* missing = !has_dtype ? "dtype" : !has_shape ? "shape" : "data_offsets";
      return tensor_error(Code::kHeaderJson, tensor.name, "its entry has no " + quoted(missing));
    }
    header_.tensors.push_back(std::move(tensor));
    return Status::ok();
  }

  Status parse_dtype(TensorInfo* tensor) {
    if (reader_.peek() != '"') {
      return reader_.skip_value() ? tensor_error(Code::kDtype, tensor->name, "dtype is not a string")
                                  : malformed_in(tensor->name, reader_.problem());
    }
    std::string text;
    if (!reader_.read_string(&text)) return malformed_in(tensor->name, reader_.problem());
    const std::optional<DType> dtype = dtype_from_name(text);
    if (!dtype) {
      return tensor_error(Code::kDtype, tensor->name,
                          "dtype " + quoted(text) + " is not one that safetensors defines (BF16, F16, F32, I64, …)");
    }
    tensor->dtype = *dtype;
    return Status::ok();
  }

  // Reads a list of non-negative integers into `out`, at most `limit` of them. `field` is what messages call it.
  Status parse_integers(const std::string& name, Code code, const char* field, size_t limit,
                        std::vector<uint64_t>* out) {
    const auto bad = [&](const std::string& problem) { return tensor_error(code, name, field + (" " + problem)); };
    if (!reader_.take('[')) {
      return reader_.skip_value() ? bad("is not a list") : malformed_in(name, reader_.problem());
    }
    if (reader_.take(']')) return Status::ok();
    do {
      const char c = reader_.peek();
      if (c != '-' && (c < '0' || c > '9')) {
        return reader_.skip_value() ? bad("holds something that is not a number")
                                    : malformed_in(name, reader_.problem());
      }
      JsonReader::Number number;
      if (!reader_.read_number(&number)) return malformed_in(name, reader_.problem());
      if (!number.is_integer) return bad("holds " + shown(number.text) + ", which is not a non-negative integer");
      if (!number.fits) {
        return tensor_error(code == Code::kShape ? Code::kOverflow : code, name,
                            field + (" holds " + shown(number.text)) + ", which does not fit 64 bits");
      }
      if (out->size() == limit) return bad("has more than " + std::to_string(limit) + " entries");
      out->push_back(number.value);
    } while (reader_.take(','));
    return reader_.take(']') ? Status::ok() : malformed_in(name, "a comma or ] was expected");
  }

  Status parse_shape(TensorInfo* tensor) {
    std::vector<uint64_t> values;
    ESPALIER_TRY(parse_integers(tensor->name, Code::kShape, "shape", kMaxDimensions, &values));
    for (const uint64_t value : values) {
      if (value > kMaxDimension) {
        return tensor_error(Code::kOverflow, tensor->name,
                            "shape holds " + std::to_string(value) + "; a dimension is at most 2^53 - 1");
      }
      tensor->shape.push_back(static_cast<int64_t>(value));
    }
    return Status::ok();
  }

  Status parse_offsets(TensorInfo* tensor) {
    std::vector<uint64_t> values;
    ESPALIER_TRY(parse_integers(tensor->name, Code::kOffsets, "data_offsets", 2, &values));
    if (values.size() != 2) return tensor_error(Code::kOffsets, tensor->name, "data_offsets must be two numbers");
    tensor->begin = values[0];
    tensor->end = values[1];
    if (tensor->begin > tensor->end) {
      return tensor_error(Code::kOffsets, tensor->name,
                          "data_offsets " + range_text(*tensor) + " end before they begin");
    }
    return Status::ok();
  }

  JsonReader reader_;
  size_t size_;
  SafetensorsHeader header_;
  bool has_metadata_ = false;
};

Status check_names(const std::vector<TensorInfo>& tensors, std::vector<uint32_t>* order) {
  std::sort(order->begin(), order->end(), [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
  const auto twice = std::adjacent_find(order->begin(), order->end(),
                                        [&](uint32_t a, uint32_t b) { return tensors[a].name == tensors[b].name; });
  if (twice == order->end()) return Status::ok();
  return tensor_error(Code::kDuplicateKey, tensors[*twice].name, "the name stands twice in the header");
}

// Whether the range of a tensor holds what its shape and type need. Offsets are still relative to the data here.
Status check_size(const TensorInfo& tensor, uint64_t data_size) {
  uint64_t bits = static_cast<uint64_t>(dtype_bits(tensor.dtype));
  bool is_empty = false;
  for (const int64_t dimension : tensor.shape) {
    is_empty = is_empty || dimension == 0;
    if (dimension != 0 && __builtin_mul_overflow(bits, static_cast<uint64_t>(dimension), &bits)) {
      return tensor_error(Code::kOverflow, tensor.name,
                          "the size of shape " + shape_text(tensor.shape) + " does not fit 64 bits");
    }
  }
  if (is_empty) bits = 0;
  if (bits % 8 != 0) {
    return tensor_error(Code::kMisaligned, tensor.name,
                        "shape " + shape_text(tensor.shape) + " of " + dtype_name(tensor.dtype) + " takes " +
                            std::to_string(bits) + " bits, which is not a whole number of bytes");
  }
  if (tensor.end - tensor.begin == bits / 8) return Status::ok();
  if (tensor.end > data_size) {
    return tensor_error(
        Code::kOffsets, tensor.name,
        "data_offsets " + range_text(tensor) + " lie outside the " + std::to_string(data_size) + " bytes of data");
  }
  return tensor_error(Code::kSize, tensor.name,
                      "shape " + shape_text(tensor.shape) + " of " + dtype_name(tensor.dtype) + " takes " +
                          std::to_string(bits / 8) + " bytes, but data_offsets " + range_text(tensor) + " span " +
                          std::to_string(tensor.end - tensor.begin));
}

// Whether the ranges, taken in ascending order, tile [0, data_size) exactly.
Status check_tiling(const std::vector<TensorInfo>& tensors, std::vector<uint32_t>* order, uint64_t data_size) {
  std::sort(order->begin(), order->end(), [&](uint32_t a, uint32_t b) {
    return std::pair(tensors[a].begin, tensors[a].end) < std::pair(tensors[b].begin, tensors[b].end);
  });
  uint64_t end = 0;
  for (const uint32_t i : *order) {
    const TensorInfo& tensor = tensors[i];
    if (tensor.begin != end) {
      return tensor_error(Code::kOffsets, tensor.name,
                          "data_offsets " + range_text(tensor) +
                              (tensor.begin < end ? " overlap the tensor before, which ends at "
                                                  : " leave a hole after the tensor before, which ends at ") +
                              std::to_string(end));
    }
    end = tensor.end;
  }
  if (end > data_size) {
    return tensor_error(Code::kTruncated, tensors[order->back()].name,
                        "the file has " + std::to_string(data_size) + " bytes of data, but the tensors take " +
                            std::to_string(end) + "; was the download cut short?");
  }
  if (end < data_size) {
    return Status(Code::kTrailing, std::to_string(data_size - end) + " bytes follow the last tensor");
  }
  return Status::ok();
}

}  // namespace

Result<uint64_t> safetensors_header_length(std::string_view first_bytes, uint64_t file_size) {
  if (file_size < 8 || first_bytes.size() < 8) {
    return Status(Code::kHeaderTooSmall, "the file has " + std::to_string(file_size) +
                                             " bytes; a safetensors file starts with an 8-byte length");
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(first_bytes[i]);
  if (length > kMaxHeaderBytes) {
    return Status(Code::kHeaderTooLarge, "the header claims " + std::to_string(length) + " bytes; at most " +
                                             std::to_string(kMaxHeaderBytes) +
                                             " are allowed. Is this a safetensors file?");
  }
  if (length > file_size - 8) {
    return Status(Code::kHeaderLength, "the header claims " + std::to_string(length) + " bytes, but only " +
                                           std::to_string(file_size - 8) + " follow; was the download cut short?");
  }
  return length;
}

Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, uint64_t file_size) {
  if (!is_utf8(json)) return Status(Code::kHeaderJson, "the header is not valid UTF-8");
  const uint64_t data_begin = 8 + json.size();
  const uint64_t data_size = file_size - data_begin;
  Result<SafetensorsHeader> result = HeaderParser(json).parse();
  if (!result.is_ok()) return result;
  std::vector<TensorInfo>& tensors = result.value().tensors;
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0u);
  ESPALIER_TRY(check_names(tensors, &order));
  for (const TensorInfo& tensor : tensors) ESPALIER_TRY(check_size(tensor, data_size));
  ESPALIER_TRY(check_tiling(tensors, &order, data_size));
  for (TensorInfo& tensor : tensors) {
    tensor.begin += data_begin;
    tensor.end += data_begin;
  }
  return result;
}

}  // namespace espalier
