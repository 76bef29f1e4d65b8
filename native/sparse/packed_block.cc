#include "sparse/packed_block.h"

#include <bit>
#include <cstring>

namespace espalier {
namespace {

static_assert(std::endian::native == std::endian::little, "blocks are read where they lie");

constexpr char kMagic[8] = {'e', 's', 'p', 'a', 'l', 'i', 'e', 'r'};
constexpr DType kSources[] = {DType::kBF16, DType::kF16, DType::kF32};
// Keeps every product of sizes far inside 64 bits.
constexpr int64_t kMaxSide = int64_t{1} << 28;

struct Header {
  char magic[8];
  uint32_t version;
  uint8_t storage;
  uint8_t values;
  uint8_t source;
  uint8_t zero;
  uint32_t n;
  uint32_t m;
  uint32_t tile_rows;
  uint32_t group;
  int64_t rows;
  int64_t cols;
  int64_t element_bytes;
  int64_t reserved;
};
static_assert(sizeof(Header) == kBlockHeader);

int64_t aligned(int64_t bytes) { return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment; }

}  // namespace

int64_t PackedBlock::padded_cols() const {
  const int64_t unit = is_quantised(format.values) ? kGroup : vector_step(format.values);
  return (cols + unit - 1) / unit * unit;
}

int64_t PackedBlock::tile_bytes() const {
  if (format.values == Values::kInt4 && format.storage == Storage::kDense) return vectors() * 32;
  // Two sparse int4 groups share bytes; a last one without partner takes as many as two.
  const int64_t all = format.values == Values::kInt4 ? (groups() + 1) / 2 * kGroup * kTileRows : vectors() * 64;
  return format.storage == Storage::kNm ? all / format.m * format.n : all;
}

int64_t PackedBlock::mask_bytes() const {
  return format.storage == Storage::kDense ? 0 : tile_rows() * vectors() * mask_words() * 4;
}

int64_t PackedBlock::scale_bytes() const {
  return is_quantised(format.values) ? tile_rows() * groups() * kTileRows * 2 : 0;
}

int64_t PackedBlock::offset_bytes() const { return format.storage == Storage::kBitmap ? (tile_rows() + 1) * 8 : 0; }

int64_t PackedBlock::masks_at() const { return kBlockHeader + aligned(element_bytes); }
int64_t PackedBlock::scales_at() const { return masks_at() + aligned(mask_bytes()); }
int64_t PackedBlock::offsets_at() const { return scales_at() + aligned(scale_bytes()); }
int64_t PackedBlock::total_bytes() const { return offsets_at() + aligned(offset_bytes()) + kBlockAlignment; }

void PackedBlock::write_header(uint8_t* out) const {
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kBlockVersion;
  header.storage = static_cast<uint8_t>(format.storage);
  header.values = static_cast<uint8_t>(format.values);
  for (uint8_t i = 0; i < 3; ++i) {
    if (kSources[i] == source) header.source = i;
  }
  header.n = static_cast<uint32_t>(format.n);
  header.m = static_cast<uint32_t>(format.m);
  header.tile_rows = kTileRows;
  header.group = kGroup;
  header.rows = rows;
  header.cols = cols;
  header.element_bytes = element_bytes;
  std::memcpy(out, &header, sizeof header);
}

Result<PackedBlock> PackedBlock::read_header(const uint8_t* data, int64_t bytes) {
  const auto broken = [](const std::string& what) { return Status(Code::kSparse, "a packed matrix " + what); };
  if (bytes < kBlockHeader) return broken("of " + std::to_string(bytes) + " bytes has no room for its header");
  Header header;
  std::memcpy(&header, data, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return broken("does not begin with its header");
  if (header.version != kBlockVersion || header.tile_rows != kTileRows || header.group != kGroup) {
    return Status(Code::kConfig, "a matrix is packed with layout " + std::to_string(header.version) + ", tiles of " +
                                     std::to_string(header.tile_rows) + " rows and groups of " +
                                     std::to_string(header.group) + "; this version of Espalier reads layout " +
                                     std::to_string(kBlockVersion) + ", " + std::to_string(kTileRows) + " and " +
                                     std::to_string(kGroup) + ": convert the source again");
  }
  if (header.storage > static_cast<uint8_t>(Storage::kNm) || header.values > static_cast<uint8_t>(Values::kInt4) ||
      header.source > 2 || header.zero != 0 || header.reserved != 0) {
    return broken("names a format that there is not");
  }
  if (header.rows < 1 || header.cols < 1 || header.rows > kMaxSide || header.cols > kMaxSide) {
    return broken("says that it is [" + std::to_string(header.rows) + ", " + std::to_string(header.cols) + "]");
  }
  PackedBlock block;
  block.format.storage = static_cast<Storage>(header.storage);
  block.format.values = static_cast<Values>(header.values);
  block.source = kSources[header.source];
  block.rows = header.rows;
  block.cols = header.cols;
  block.element_bytes = header.element_bytes;
  const bool grouped = block.format.storage == Storage::kNm;
  if (grouped ? header.m > kMaxSide || header.n > header.m : header.n != 0 || header.m != 0) {
    return broken("says that it keeps " + std::to_string(header.n) + " of " + std::to_string(header.m));
  }
  block.format.n = static_cast<int>(header.n);
  block.format.m = static_cast<int>(header.m);
  if (!format_exists(block.format, block.cols)) {
    return broken("is stored as " + block.format.name() + ", which there is not for " + std::to_string(block.cols) +
                  " columns");
  }
  const int64_t most = block.tile_rows() * block.tile_bytes();
  if (block.format.storage == Storage::kBitmap ? block.element_bytes < 0 || block.element_bytes > most
                                               : block.element_bytes != most) {
    return broken("says that its elements take " + std::to_string(block.element_bytes) + " bytes, where " +
                  block.format.name() + " takes " + std::to_string(most));
  }
  if (block.total_bytes() != bytes) {
    return broken("has " + std::to_string(bytes) + " bytes, but its header implies " +
                  std::to_string(block.total_bytes()));
  }
  return block;
}

}  // namespace espalier
