#include "checkpoint/safetensors_header.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using espalier::Code;
using espalier::code_name;
using espalier::kMaxHeaderBytes;
using espalier::parse_safetensors_header;
using espalier::Result;
using espalier::safetensors_header_length;
using espalier::SafetensorsHeader;

namespace {

Result<SafetensorsHeader> parse(const std::string& json, uint64_t data_bytes) {
  return parse_safetensors_header(json, 8 + json.size() + data_bytes);
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return '"' + name + R"(":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{" + entry("w", dtype, shape, offsets) + "}";
}

std::string repeat(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

struct Rejected {
  const char* what;
  std::string json;
  uint64_t data_bytes;
  Code code;
  const char* tensor;
};

const std::string kF32x4 = one("\"F32\"", "[4]", "[0,16]");

const std::vector<Rejected> kRejected = {
    {"empty text", "", 0, Code::kHeaderJson, ""},
    {"a list", "[]", 0, Code::kHeaderJson, ""},
    {"null", "null", 0, Code::kHeaderJson, ""},
    {"truncated", kF32x4.substr(0, kF32x4.size() - 1), 16, Code::kHeaderJson, ""},
    {"text after the object", "{}x", 0, Code::kHeaderJson, ""},
    {"NUL padding", std::string("{}\0", 3), 0, Code::kHeaderJson, ""},
    {"trailing comma", "{" + entry("w", "\"U8\"", "[1]", "[0,1]") + ",}", 1, Code::kHeaderJson, ""},
    {"byte order mark", "\xef\xbb\xbf{}", 0, Code::kHeaderJson, ""},
    {"invalid UTF-8", "{\"\xff\":1}", 0, Code::kHeaderJson, ""},
    {"overlong UTF-8", "{\"\xc0\x80\":1}", 0, Code::kHeaderJson, ""},
    {"surrogate in UTF-8", "{\"\xed\xa0\x80\":1}", 0, Code::kHeaderJson, ""},
    {"lone surrogate escape", "{" + entry("\\ud800", "\"U8\"", "[1]", "[0,1]") + "}", 1, Code::kHeaderJson, ""},
    {"reversed surrogate pair", "{" + entry("\\udc00\\ud800", "\"U8\"", "[1]", "[0,1]") + "}", 1, Code::kHeaderJson,
     ""},
    {"control character in a name", "{" + entry("a\nb", "\"U8\"", "[1]", "[0,1]") + "}", 1, Code::kHeaderJson, ""},
    {"unknown escape", "{" + entry("\\x", "\"U8\"", "[1]", "[0,1]") + "}", 1, Code::kHeaderJson, ""},
    {"entry that is a number", "{\"w\":1}", 0, Code::kHeaderJson, "w"},
    {"entry without dtype", R"({"w":{"shape":[],"data_offsets":[0,1]}})", 1, Code::kHeaderJson, "w"},
    {"entry without shape", R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", 1, Code::kHeaderJson, "w"},
    {"entry without offsets", R"({"w":{"dtype":"U8","shape":[]}})", 1, Code::kHeaderJson, "w"},
    {"nested a million deep", R"({"w":{"x":)" + repeat("[", 1'000'000) + repeat("]", 1'000'000) + "}}", 0,
     Code::kHeaderJson, "w"},
    {"nested a million deep in a shape", one("\"U8\"", repeat("[", 1'000'000), "[0,1]"), 1, Code::kHeaderJson, "w"},
    {"number with a leading zero", one("\"U8\"", "[01]", "[0,1]"), 1, Code::kHeaderJson, "w"},
    {"number with a plus", one("\"U8\"", "[+1]", "[0,1]"), 1, Code::kHeaderJson, "w"},

    {"name twice, same range",
     "{" + entry("w", "\"U8\"", "[1]", "[0,1]") + "," + entry("w", "\"U8\"", "[1]", "[0,1]") + "}", 1,
     Code::kDuplicateKey, "w"},
    {"name twice, other range",
     "{" + entry("w", "\"U8\"", "[1]", "[0,1]") + "," + entry("w", "\"U8\"", "[1]", "[1,2]") + "}", 2,
     Code::kDuplicateKey, "w"},
    {"name twice, once escaped",
     "{" + entry("w", "\"U8\"", "[1]", "[0,1]") + "," + entry("\\u0077", "\"U8\"", "[1]", "[1,2]") + "}", 2,
     Code::kDuplicateKey, "w"},
    {"field twice", R"({"w":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1, Code::kDuplicateKey,
     "w"},

    {"metadata null", R"({"__metadata__":null})", 0, Code::kMetadata, ""},
    {"metadata a list", R"({"__metadata__":["a"]})", 0, Code::kMetadata, ""},
    {"metadata with a number", R"({"__metadata__":{"a":1}})", 0, Code::kMetadata, ""},
    {"metadata with an object", R"({"__metadata__":{"a":{}}})", 0, Code::kMetadata, ""},
    {"metadata with null", R"({"__metadata__":{"a":null}})", 0, Code::kMetadata, ""},
    {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", 0, Code::kMetadata, ""},
    {"metadata key twice", R"({"__metadata__":{"a":"1","a":"2"}})", 0, Code::kMetadata, ""},

    {"unknown dtype", one("\"F7\"", "[1]", "[0,1]"), 1, Code::kDtype, "w"},
    {"lower-case dtype", one("\"f32\"", "[1]", "[0,4]"), 4, Code::kDtype, "w"},
    {"dtype a number", one("32", "[1]", "[0,4]"), 4, Code::kDtype, "w"},

    {"shape negative", one("\"U8\"", "[-1]", "[0,1]"), 1, Code::kShape, "w"},
    {"shape minus zero", one("\"U8\"", "[-0]", "[0,0]"), 0, Code::kShape, "w"},
    {"shape fraction", one("\"U8\"", "[1.5]", "[0,1]"), 1, Code::kShape, "w"},
    {"shape 1.0", one("\"U8\"", "[1.0]", "[0,1]"), 1, Code::kShape, "w"},
    {"shape exponent", one("\"U8\"", "[1e3]", "[0,1000]"), 1000, Code::kShape, "w"},
    {"shape string", one("\"U8\"", "[\"2\"]", "[0,2]"), 2, Code::kShape, "w"},
    {"shape null", one("\"U8\"", "[null]", "[0,1]"), 1, Code::kShape, "w"},
    {"shape a number", one("\"U8\"", "1", "[0,1]"), 1, Code::kShape, "w"},
    {"shape with 65 dimensions", one("\"U8\"", "[1" + repeat(",1", 64) + "]", "[0,1]"), 1, Code::kShape, "w"},
    {"shape 2^62 x 4", one("\"U8\"", "[4611686018427387904,4]", "[0,0]"), 0, Code::kOverflow, "w"},
    {"shape 2^40 x 2^40 x 0", one("\"U8\"", "[1099511627776,1099511627776,0]", "[0,0]"), 0, Code::kOverflow, "w"},
    {"shape 0 x 2^40 x 2^40", one("\"U8\"", "[0,1099511627776,1099511627776]", "[0,0]"), 0, Code::kOverflow, "w"},
    {"shape 2^64", one("\"U8\"", "[18446744073709551616]", "[0,0]"), 0, Code::kOverflow, "w"},
    {"bits overflow", one("\"F64\"", "[4503599627370496,4096]", "[0,0]"), 0, Code::kOverflow, "w"},

    {"offsets reversed", one("\"U8\"", "[1]", "[1,0]"), 1, Code::kOffsets, "w"},
    {"offsets negative", one("\"U8\"", "[1]", "[-1,0]"), 1, Code::kOffsets, "w"},
    {"offsets 2^53 + 1", one("\"U8\"", "[4]", "[0,9007199254740993]"), 4, Code::kOffsets, "w"},
    {"offsets from 2^53 + 1", one("\"U8\"", "[1]", "[9007199254740993,9007199254740994]"), 1, Code::kOffsets, "w"},
    {"offsets 2^64", one("\"U8\"", "[1]", "[0,18446744073709551616]"), 1, Code::kOffsets, "w"},
    {"offsets with a fraction", one("\"U8\"", "[1]", "[0,1.0]"), 1, Code::kOffsets, "w"},
    {"three offsets", one("\"U8\"", "[1]", "[0,1,1]"), 1, Code::kOffsets, "w"},
    {"one offset", one("\"U8\"", "[1]", "[0]"), 1, Code::kOffsets, "w"},
    {"offsets a string", one("\"U8\"", "[1]", "\"0,1\""), 1, Code::kOffsets, "w"},
    {"overlap", "{" + entry("a", "\"U8\"", "[2]", "[0,2]") + "," + entry("b", "\"U8\"", "[2]", "[1,3]") + "}", 3,
     Code::kOffsets, "b"},
    {"hole", "{" + entry("a", "\"U8\"", "[1]", "[0,1]") + "," + entry("b", "\"U8\"", "[1]", "[2,3]") + "}", 3,
     Code::kOffsets, "b"},
    {"first offset not 0", one("\"U8\"", "[1]", "[1,2]"), 2, Code::kOffsets, "w"},
    {"empty tensor inside another",
     "{" + entry("a", "\"U8\"", "[4]", "[0,4]") + "," + entry("b", "\"U8\"", "[0]", "[2,2]") + "}", 4, Code::kOffsets,
     "b"},

    {"trailing bytes", kF32x4, 17, Code::kTrailing, ""},
    {"data without tensors", "{}", 1, Code::kTrailing, ""},
    {"one byte short", kF32x4, 15, Code::kTruncated, "w"},
    {"size too small", one("\"F32\"", "[4]", "[0,12]"), 12, Code::kSize, "w"},
    {"size too large", one("\"F32\"", "[4]", "[0,20]"), 20, Code::kSize, "w"},
    {"size of a scalar", one("\"F32\"", "[]", "[0,8]"), 8, Code::kSize, "w"},
    {"F4 with an odd count", one("\"F4\"", "[3]", "[0,2]"), 2, Code::kMisaligned, "w"},
    {"F6 with 6 bits over", one("\"F6_E2M3\"", "[5]", "[0,4]"), 4, Code::kMisaligned, "w"},
    {"name of 4097 bytes", "{" + entry(std::string(4097, 'n'), "\"U8\"", "[1]", "[0,1]") + "}", 1, Code::kName,
     nullptr},
    {"name of a megabyte", "{" + entry(std::string(1 << 20, 'n'), "\"U8\"", "[1]", "[0,1]") + "}", 1, Code::kName,
     nullptr},
};

}  // namespace

TEST_CASE("a malformed header is refused with its code and tensor") {
  for (const Rejected& row : kRejected) {
    CAPTURE(row.what);
    const auto result = parse(row.json, row.data_bytes);
    REQUIRE_FALSE(result.is_ok());
    CHECK(std::string(code_name(result.status().code())) == code_name(row.code));
    if (row.tensor != nullptr) CHECK(result.status().tensor() == row.tensor);
    CHECK_FALSE(result.status().message().empty());
    CHECK(result.status().message().size() < 1000);
  }
}

TEST_CASE("a well-formed header gives names, types, shapes and file ranges in its own order") {
  const std::string json = R"({"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
                           R"("__metadata__":{"format":"pt","__proto__":"x"},)"
                           R"("a":{"data_offsets":[0,4],"shape":[],"dtype":"F32"}})";
  const auto result = parse(json, 16);
  REQUIRE(result.is_ok());
  const SafetensorsHeader& header = result.value();
  const uint64_t data = 8 + json.size();
  REQUIRE(header.tensors.size() == 2);
  CHECK(header.tensors[0].name == "b");
  CHECK(std::string(espalier::dtype_name(header.tensors[0].dtype)) == "BF16");
  CHECK(header.tensors[0].shape == std::vector<int64_t>{2, 3});
  CHECK(header.tensors[0].begin == data + 4);
  CHECK(header.tensors[0].end == data + 16);
  CHECK(header.tensors[1].name == "a");
  CHECK(header.tensors[1].shape.empty());
  CHECK(header.tensors[1].begin == data);
  REQUIRE(header.metadata.size() == 2);
  CHECK(header.metadata[0] == std::pair<std::string, std::string>("format", "pt"));
  CHECK(header.metadata[1] == std::pair<std::string, std::string>("__proto__", "x"));
}

TEST_CASE("legal oddities load") {
  struct Row {
    const char* what;
    std::string json;
    uint64_t data_bytes;
    size_t tensors;
  };
  const std::vector<Row> rows = {
      {"no tensors", "{}", 0, 0},
      {"rank 0", one("\"F64\"", "[]", "[0,8]"), 8, 1},
      {"a dimension of 0", one("\"F32\"", "[3,0,5]", "[0,0]"), 0, 1},
      {"white space before and after", " \n\t\r" + kF32x4 + "  \n", 16, 1},
      {"white space everywhere",
       "{ \"w\" : { \"dtype\" : \"U8\" , \"shape\" : [ 1 ] , \"data_offsets\" : [ 0 , 1 ] } }", 1, 1},
      {"unaligned data", "{" + entry("a", "\"U8\"", "[1]", "[0,1]") + "," + entry("b", "\"F64\"", "[1]", "[1,9]") + "}",
       9, 2},
      {"empty tensors where others start and end",
       "{" + entry("z", "\"U8\"", "[0]", "[4,4]") + "," + entry("a", "\"U8\"", "[4]", "[0,4]") + "," +
           entry("y", "\"U8\"", "[0]", "[0,0]") + "}",
       4, 3},
      {"unknown fields",
       R"({"w":{"x":{"y":[1,{"z":null}],"q":-1.5e-3},"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1, 1},
      {"F4 with an even count", one("\"F4\"", "[2,3]", "[0,3]"), 3, 1},
      {"F6 with a multiple of four", one("\"F6_E3M2\"", "[4]", "[0,3]"), 3, 1},
      {"empty name", "{" + entry("", "\"U8\"", "[1]", "[0,1]") + "}", 1, 1},
      {"name of 4096 bytes", "{" + entry(std::string(4096, 'n'), "\"U8\"", "[1]", "[0,1]") + "}", 1, 1},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    const auto result = parse(row.json, row.data_bytes);
    CAPTURE(result.status().message());
    REQUIRE(result.is_ok());
    CHECK(result.value().tensors.size() == row.tensors);
  }
}

TEST_CASE("escapes in names are decoded, astral pairs and NUL included") {
  const auto result = parse("{" + entry(R"(\u0000\"\\\/\n\u00e9\ud83d\ude00)", "\"U8\"", "[1]", "[0,1]") + "}", 1);
  REQUIRE(result.is_ok());
  CHECK(result.value().tensors[0].name == std::string("\0\"\\/\n\xc3\xa9\xf0\x9f\x98\x80", 11));
}

TEST_CASE("a hundred thousand entries over the same bytes are refused") {
  std::string json = "{";
  for (int i = 0; i < 100'000; ++i) {
    json += (i == 0 ? "" : ",") + entry("t" + std::to_string(i), "\"U8\"", "[16]", "[0,16]");
  }
  const auto result = parse(json + "}", 16);
  REQUIRE_FALSE(result.is_ok());
  CHECK(result.status().code() == Code::kOffsets);
}

TEST_CASE("messages show hostile names on one line") {
  const auto result = parse("{" + entry("\\u001b[2Jx\\n", "\"F7\"", "[1]", "[0,1]") + "}", 1);
  REQUIRE_FALSE(result.is_ok());
  for (const char c : result.status().message()) CHECK(static_cast<unsigned char>(c) >= 0x20);
}

TEST_CASE("the length field is checked before anything is read") {
  const auto length = [](uint64_t n, uint64_t file_size) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(n >> (8 * i)));
    return safetensors_header_length(bytes, file_size);
  };
  CHECK(length(2, 10).value() == 2);
  CHECK(length(kMaxHeaderBytes, kMaxHeaderBytes + 8).value() == kMaxHeaderBytes);
  CHECK(length(kMaxHeaderBytes + 1, kMaxHeaderBytes + 9).status().code() == Code::kHeaderTooLarge);
  CHECK(length(uint64_t{1} << 63, 100).status().code() == Code::kHeaderTooLarge);
  CHECK(length(~uint64_t{0}, 100).status().code() == Code::kHeaderTooLarge);
  CHECK(length(3, 10).status().code() == Code::kHeaderLength);
  CHECK(safetensors_header_length("", 0).status().code() == Code::kHeaderTooSmall);
  CHECK(safetensors_header_length("1234567", 7).status().code() == Code::kHeaderTooSmall);
}
