// Weights on their way to the GPU, on the host: against the elements of the file that they are read from.
#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/cuda/host_matrices.h"
#include "packing.h"

using namespace espalier;
using namespace espalier::cuda;

namespace {

constexpr int64_t kRows = 24;
constexpr int64_t kCols = 96;
constexpr Format kInt8{Storage::kDense, Values::kInt8};

// One matrix in a file: its bf16 elements, then its block packed in a format.
struct Stored {
  std::string path;
  std::vector<float> values;
  std::vector<float> packed_values;
  WeightRef plain;
  WeightRef packed;

  Stored(std::mt19937& random, ThreadPool& pool, const Format& format)
      : values(test::sparse_weights(random, kRows, kCols, {}, 1.0)), packed_values(values.size()) {
    const PackedMatrix matrix = test::pack(values, kRows, kCols, format);
    matrix.unpack(pool, packed_values.data());
    std::vector<uint8_t> bytes(kRows * kCols * 2);
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t bits = float_to_bf16(values[i]);
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
    const auto elements = static_cast<int64_t>(bytes.size());
    bytes.insert(bytes.end(), matrix.block(), matrix.block() + matrix.block_bytes());
    path = std::filesystem::temp_directory_path() / ("espalier-host-" + std::to_string(random()));
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    Result<std::shared_ptr<MappedFile>> file = MappedFile::open(path);
    REQUIRE(file.is_ok());
    plain = {.name = "plain", .rows = kRows, .cols = kCols, .values = {file.value(), 0, elements}, .bitmask = {}};
    packed = plain;
    packed.name = "packed";
    packed.packed = true;
    packed.dtype = matrix.source();
    packed.values = {file.value(), elements, matrix.block_bytes()};
  }
  ~Stored() { std::filesystem::remove(path); }
  Stored(const Stored&) = delete;
  Stored& operator=(const Stored&) = delete;
};

void require(const Status& status) { REQUIRE_MESSAGE(status.is_ok(), status.message()); }

float weight(const CodeMatrix& matrix, int64_t row, int64_t col) {
  return static_cast<float>(matrix.row(row)[col]) * f16_to_float(matrix.scales(row)[col / kGroup]);
}

}  // namespace

TEST_CASE("weights become codes where int8 is asked for or stored, each row in its place") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const Stored gate(random, pool, kInt8);
  const Stored up(random, pool, kInt8);
  // Rounded now, and packed before; the second of two matrices, of which one is left empty.
  HostMatrices host(2, 2 * kRows, kCols);
  require(host.read(pool, Precision::kInt8, gate.plain, {1, 0, true}));
  require(host.read(pool, Precision::kSource, up.packed, {1, 8, true}));
  REQUIRE(host.hold_codes());
  const std::vector<CodeMatrix> codes = host.codes();
  REQUIRE(codes.size() == 2);
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t to = row / 8 * 16 + row % 8;
    for (int64_t col = 0; col < kCols; ++col) {
      const auto at = static_cast<size_t>(row * kCols + col);
      CHECK(weight(codes[1], to, col) == gate.packed_values[at]);
      CHECK(weight(codes[1], to + 8, col) == up.packed_values[at]);
      CHECK(weight(codes[0], to, col) == 0);
    }
  }
}

TEST_CASE("weights stay bf16 where nothing else is asked for") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const Stored stored(random, pool, {});
  HostMatrices host(1, 2 * kRows, kCols);
  require(host.read(pool, Precision::kSource, stored.plain, {0, 0}));
  // What is packed keeps its type.
  require(host.read(pool, Precision::kInt8, stored.packed, {0, kRows}));
  REQUIRE(!host.hold_codes());
  std::vector<float> scratch;
  for (int64_t row = 0; row < 2 * kRows; ++row) {
    const RowBlock block = host.sources().front().tile(row / kTileRows, scratch);
    for (int64_t col = 0; col < kCols; ++col) {
      CHECK(load_float(DType::kBF16, block.row(row % kTileRows), col) ==
            stored.values[static_cast<size_t>(row % kRows * kCols + col)]);
    }
  }
}

TEST_CASE("types that do not go together, and those that the GPU has no product for") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(1);
  const Stored int8(random, pool, kInt8);
  const Stored int4(random, pool, {Storage::kDense, Values::kInt4});
  HostMatrices host(1, 2 * kRows, kCols);
  require(host.read(pool, Precision::kSource, int8.plain, {0, 0}));
  const Status mixed = host.read(pool, Precision::kSource, int8.packed, {0, kRows});
  CHECK(mixed.code() == Code::kUsage);
  CHECK(mixed.message() ==
        "the GPU multiplies matrices of a layer together, but packed is int8 and others are bf16; "
        "round all of them, or none");
  HostMatrices other(1, kRows, kCols);
  const Status refused = other.read(pool, Precision::kSource, int4.packed, {0, 0});
  CHECK(refused.code() == Code::kUsage);
  CHECK(refused.message() ==
        "the GPU multiplies bf16 and int8 weights, but packed is dense int4; load it as bf16 "
        "(weights: bf16)");
}
