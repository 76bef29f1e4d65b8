// Blocks of packed matrices whose bytes come from elsewhere: what is accepted can be used without leaving the block.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "kernel_sets.h"
#include "packing.h"
#include "test_main.h"

using namespace espalier;

namespace {

// A copy of a block that ends where memory does, so that a read behind it is a fault.
class GuardedBlock {
 public:
  explicit GuardedBlock(const std::vector<uint8_t>& bytes) : size_(bytes.size()) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    inside_ = (size_ + page - 1) / page * page;
    void* const made = mmap(nullptr, inside_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(made != MAP_FAILED);
    start_ = static_cast<uint8_t*>(made);
    REQUIRE(mprotect(start_ + inside_, page, PROT_NONE) == 0);
    mapped_ = inside_ + page;
    std::copy(bytes.begin(), bytes.end(), data());
  }
  ~GuardedBlock() { munmap(start_, mapped_); }
  GuardedBlock(const GuardedBlock&) = delete;
  GuardedBlock& operator=(const GuardedBlock&) = delete;

  uint8_t* data() { return start_ + inside_ - size_; }
  size_t size() const { return size_; }

  Result<PackedMatrix> open(ThreadPool& pool) {
    return PackedMatrix::from_block(pool, nullptr, data(), static_cast<int64_t>(size_));
  }

 private:
  size_t size_;
  size_t inside_ = 0;
  size_t mapped_ = 0;
  uint8_t* start_ = nullptr;
};

std::vector<uint8_t> block_of(const PackedMatrix& matrix) {
  return {matrix.block(), matrix.block() + matrix.block_bytes()};
}

// Multiplies on every instruction set that takes the format, and unpacks.
void use(ThreadPool& pool, const PackedMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.rows() * matrix.cols()));
  matrix.unpack(pool, out.data());
  const std::vector<float> x(static_cast<size_t>(matrix.padded_cols() + 64), 1.0f);
  std::vector<float> y(static_cast<size_t>(matrix.rows()));
  std::vector<int8_t> q(static_cast<size_t>(kTileTokens * (matrix.padded_cols() + 64)));
  const auto groups = static_cast<size_t>((matrix.padded_cols() + kGroup - 1) / kGroup);
  std::vector<float> scales(kTileTokens * groups);
  std::vector<int32_t> sums(groups);
  for (const CpuKernels* kernels : test::kernel_sets()) {
    if (!kernels->takes(matrix.format())) continue;
    kernels->quantise_row(x.data(), matrix.cols(), q.data(), scales.data(), sums.data());
    const QuantisedRows rows{q.data(), scales.data(), sums.data(), static_cast<int64_t>(groups)};
    kernels->matmul(matrix.format())(
        {matrix, 0, matrix.tile_rows(), x.data(), matrix.cols(), nullptr, &rows, 1, y.data(), matrix.rows()});
  }
}

// Three groups of 64: two share what they store as int4, one is alone.
constexpr int64_t kCols = 192;

std::vector<Format> all_formats() {
  std::vector<Format> formats;
  for (const Values values : {Values::kBf16, Values::kF32, Values::kInt8, Values::kInt4}) {
    for (const Format format : {Format{Storage::kDense, values}, Format{Storage::kBitmap, values},
                                Format{Storage::kNm, values, 2, 4}, Format{Storage::kNm, values, 24, 64}}) {
      if (format_exists(format, kCols)) formats.push_back(format);
    }
  }
  return formats;
}

PackedMatrix example(std::mt19937& random, const Format& format) {
  return test::pack(test::sparse_weights(random, 40, kCols, format), 40, kCols, format);
}

}  // namespace

TEST_CASE("a block is the matrix it was taken from") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  for (const Format& format : all_formats()) {
    CAPTURE(format.name());
    const PackedMatrix matrix = example(random, format);
    CHECK(matrix.block_bytes() % 64 == 0);
    GuardedBlock block(block_of(matrix));
    const Result<PackedMatrix> again = block.open(pool);
    REQUIRE(again.is_ok());
    CHECK(again.value().format() == format);
    CHECK(again.value().bytes() == matrix.bytes());
    std::vector<float> a(40 * kCols);
    std::vector<float> b(40 * kCols);
    matrix.unpack(pool, a.data());
    again.value().unpack(pool, b.data());
    CHECK(a == b);
    use(pool, again.value());
  }
}

TEST_CASE("headers that are not what this library writes are refused by name") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(1);
  const std::vector<uint8_t> sound = block_of(example(random, {Storage::kBitmap, Values::kInt8}));
  const auto code_with = [&](size_t at, uint8_t value) {
    GuardedBlock block(sound);
    block.data()[at] = value;
    return block.open(pool).status().code();
  };
  CHECK(code_with(0, 'E') == Code::kSparse);
  CHECK(code_with(8, 1) == Code::kConfig);
  CHECK(code_with(8, 3) == Code::kConfig);
  CHECK(code_with(24, 32) == Code::kConfig);
  CHECK(code_with(28, 128) == Code::kConfig);
  CHECK(code_with(12, 3) == Code::kSparse);
  CHECK(code_with(13, 4) == Code::kSparse);
  CHECK(code_with(13, 1) == Code::kSparse);  // there is no bitmap f32
  CHECK(code_with(14, 3) == Code::kSparse);
  CHECK(code_with(16, 2) == Code::kSparse);
  CHECK(code_with(32, 0) == Code::kSparse);
  CHECK(code_with(39, 0x80) == Code::kSparse);
  CHECK(code_with(47, 0x7f) == Code::kSparse);
  CHECK(code_with(55, 0xff) == Code::kSparse);
  for (const size_t bytes : {size_t{0}, size_t{63}, size_t{64}, sound.size() - 64}) {
    GuardedBlock block({sound.begin(), sound.begin() + static_cast<std::ptrdiff_t>(bytes)});
    CHECK(PackedMatrix::from_block(pool, nullptr, block.data() - reinterpret_cast<uintptr_t>(block.data()) % 64,
                                   static_cast<int64_t>(bytes))
              .status()
              .code() == Code::kSparse);
  }
  GuardedBlock block(sound);
  CHECK(PackedMatrix::from_block(pool, nullptr, block.data() + 4, static_cast<int64_t>(sound.size()) - 4)
            .status()
            .code() == Code::kSparse);
}

TEST_CASE("whatever bytes are changed, a block is refused or can be used") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(1);
  int refused = 0;
  int used = 0;
  for (const Format& format : all_formats()) {
    CAPTURE(format.name());
    const PackedMatrix matrix = example(random, format);
    const std::vector<uint8_t> sound = block_of(matrix);
    const PackedBlock parts = PackedBlock::read_header(sound.data(), matrix.block_bytes()).value();
    // The header, masks and offsets lead the products; elements and scales only feed them.
    const auto any_of = [&](int64_t begin, int64_t bytes) {
      return static_cast<size_t>(begin + static_cast<int64_t>(random() % static_cast<uint64_t>(bytes)));
    };
    for (int round = 0; round < 300; ++round) {
      GuardedBlock block(sound);
      const int changes = 1 + static_cast<int>(random() % 3);
      for (int i = 0; i < changes; ++i) {
        size_t at = any_of(0, matrix.block_bytes());
        if (random() % 3 == 0) at = any_of(0, kBlockHeader);
        if (random() % 3 == 0 && parts.mask_bytes() > 0) at = any_of(parts.masks_at(), parts.mask_bytes());
        if (random() % 3 == 0 && parts.offset_bytes() > 0) at = any_of(parts.offsets_at(), parts.offset_bytes());
        block.data()[at] = static_cast<uint8_t>(random());
      }
      const Result<PackedMatrix> opened = block.open(pool);
      if (!opened.is_ok()) {
        const Code code = opened.status().code();
        CHECK((code == Code::kSparse || code == Code::kConfig));
        ++refused;
        continue;
      }
      use(pool, opened.value());
      ++used;
    }
  }
  CHECK(refused > 100);
  CHECK(used > 100);
}

TEST_CASE("a mask and offsets that contradict each other are refused, and say which tile row") {
  std::mt19937 random(test::fresh_seed());
  ThreadPool pool(2);
  const PackedMatrix matrix = example(random, {Storage::kBitmap, Values::kBf16});
  const std::vector<uint8_t> sound = block_of(matrix);
  const PackedBlock parts = PackedBlock::read_header(sound.data(), matrix.block_bytes()).value();
  GuardedBlock block(sound);
  auto* const offsets = reinterpret_cast<int64_t*>(block.data() + parts.offsets_at());
  offsets[1] += 2;
  Status status = block.open(pool).status();
  CHECK(status.code() == Code::kSparse);
  CHECK(status.message().find("tile row 0") != std::string::npos);
  offsets[1] -= 2;
  CHECK(block.open(pool).is_ok());
  // One element moved from a tile row to the next: the total is right, each of the two is wrong.
  auto* const masks = reinterpret_cast<uint32_t*>(block.data() + parts.masks_at());
  masks[parts.vectors()] ^= 1u;
  status = block.open(pool).status();
  CHECK(status.code() == Code::kSparse);
  CHECK(status.message().find("tile row 1") != std::string::npos);
}
