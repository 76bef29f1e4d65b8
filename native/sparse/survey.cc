#include "sparse/survey.h"

#include <algorithm>
#include <atomic>
#include <bit>

#include "sparse/tile_packer.h"

namespace espalier {
namespace {

// Fields of one width in a 64-bit word, each with the count of its bits.
struct Counts {
  uint64_t of4;
  uint64_t of8;
  uint64_t of16;
  uint64_t of32;
  uint32_t of64;
};

Counts count_fields(uint64_t bits) {
  Counts counts;
  uint64_t pairs = bits - (bits >> 1 & 0x5555555555555555u);
  counts.of4 = (pairs & 0x3333333333333333u) + (pairs >> 2 & 0x3333333333333333u);
  counts.of8 = (counts.of4 + (counts.of4 >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  counts.of16 = (counts.of8 + (counts.of8 >> 8)) & 0x00ff00ff00ff00ffu;
  counts.of32 = (counts.of16 + (counts.of16 >> 16)) & 0x0000ffff0000ffffu;
  counts.of64 = static_cast<uint32_t>(counts.of32 + (counts.of32 >> 32));
  return counts;
}

// Collects what the rows of one tile row have.
struct TileCount {
  int64_t kept = 0;
  uint64_t over[5] = {};         // not 0: some 4, 8, 16, 32, 64 inputs have more than half
  std::vector<uint32_t> groups;  // elements of each 64 inputs of all rows

  explicit TileCount(size_t words) : groups(words) {}

  void add(size_t word, uint64_t bits) {
    const Counts counts = count_fields(bits);
    // Adding makes the high bit of each field that holds more than half.
    over[0] |= (counts.of4 + 0x5555555555555555u) & 0x8888888888888888u;
    over[1] |= (counts.of8 + 0x7b7b7b7b7b7b7b7bu) & 0x8080808080808080u;
    over[2] |= (counts.of16 + 0x7ff77ff77ff77ff7u) & 0x8000800080008000u;
    over[3] |= (counts.of32 + 0x7fffffef7fffffefu) & 0x8000000080000000u;
    over[4] |= static_cast<uint64_t>(counts.of64 > 32);
    groups[word] += counts.of64;
    kept += counts.of64;
  }

  int64_t bytes(Values values) const {
    if (values != Values::kInt4) return kept * (values == Values::kBf16 ? 2 : 1);
    // Two groups share bytes: as many as the fuller one needs.
    int64_t total = 0;
    for (size_t g = 0; g < groups.size(); g += 2) {
      total += g + 1 < groups.size() ? std::max(groups[g], groups[g + 1]) : groups[g];
    }
    return total;
  }
};

}  // namespace

ZeroSurvey::ZeroSurvey(ThreadPool& pool, Values values, const MatrixSource& source)
    : values_(values), elements_(source.rows() * source.cols()) {
  const int64_t tiles = (source.rows() + kTileRows - 1) / kTileRows;
  tile_bytes_.resize(static_cast<size_t>(tiles));
  const auto words = static_cast<size_t>((source.cols() + 63) / 64);
  const TilePacker& packer = tile_packer();
  std::atomic<int64_t> kept{0};
  std::atomic<uint32_t> over{0};
  pool.parallel_for(tiles, 4, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    std::vector<uint64_t> bits(words);
    int64_t found = 0;
    uint32_t found_over = 0;
    for (int64_t t = begin; t < end; ++t) {
      const RowBlock rows = source.tile(t, scratch);
      TileCount count(words);
      for (int64_t r = 0; r < rows.count; ++r) {
        packer.mark_row(rows.dtype, values, rows.row(r), rows.cols, bits.data());
        for (size_t w = 0; w < words; ++w) count.add(w, bits[w]);
      }
      found += count.kept;
      for (uint32_t g = 0; g < std::size(kSizes); ++g) found_over |= static_cast<uint32_t>(count.over[g] != 0) << g;
      tile_bytes_[static_cast<size_t>(t)] = count.bytes(values);
    }
    kept += found;
    over |= found_over;
  });
  zeros_ = elements_ - kept;
  for (uint32_t g = 0; g < std::size(kSizes); ++g) {
    const Format format{Storage::kNm, values, kSizes[g] / 2, kSizes[g]};
    fits_[g] = (over >> g & 1u) == 0 && format_exists(format, source.cols());
  }
}

Format ZeroSurvey::choose() const {
  if (values_ == Values::kF32) return {Storage::kDense, values_};
  const double sparsity = static_cast<double>(zeros_) / static_cast<double>(elements_);
  // At far more than half zeros a bitmap stores less than n:m with n = m / 2.
  if (sparsity < 0.6) {
    for (size_t g = 0; g < std::size(kSizes); ++g) {
      if (fits_[g]) return {Storage::kNm, values_, kSizes[g] / 2, kSizes[g]};
    }
  }
  return {sparsity >= kBitmapSparsity ? Storage::kBitmap : Storage::kDense, values_};
}

}  // namespace espalier
