// PackedMatrix::pack: one pass over the source for offsets where a bitmap needs them, one that packs.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "core/aligned.h"
#include "sparse/packed_matrix.h"
#include "sparse/tile_packer.h"

namespace espalier {
namespace {

// Ranges of tile rows for each thread: few, because each allocates its scratch.
constexpr int64_t kRanges = 4;

// What a thread packs into before it knows how long a tile row gets.
struct Scratch {
  std::vector<float> rows;
  AlignedBuffer<uint8_t> codes;
  AlignedBuffer<uint8_t> elements;

  bool reserve(const PackedBlock& block) {
    codes.reset_uninitialised(static_cast<size_t>(block.vectors() * 64));
    elements.reset_uninitialised(static_cast<size_t>(block.tile_bytes()) + 64);
    return codes.data() != nullptr && elements.data() != nullptr;
  }
};

// Zeros between the parts, so that the same matrix gives the same bytes.
void clear_padding(const PackedBlock& block, uint8_t* data) {
  const auto clear = [&](int64_t begin, int64_t end) {
    std::memset(data + begin, 0, static_cast<size_t>(end - begin));
  };
  clear(kBlockHeader + block.element_bytes, block.masks_at());
  clear(block.masks_at() + block.mask_bytes(), block.scales_at());
  clear(block.scales_at() + block.scale_bytes(), block.offsets_at());
  clear(block.offsets_at() + block.offset_bytes(), block.total_bytes());
}

}  // namespace

Result<PackedMatrix> PackedMatrix::pack(ThreadPool& pool, Format format, const MatrixSource& source,
                                        const ZeroSurvey* survey) {
  const Status no_memory(Code::kOutOfMemory, "not enough memory to pack a matrix");
  if (source.rows() <= 0 || source.cols() <= 0)
    return Status(Code::kUsage, "a matrix needs at least one row and one column");
  if (!format_exists(format, source.cols())) {
    return Status(Code::kUsage,
                  "there is no format " + format.name() + " for " + std::to_string(source.cols()) + " columns");
  }
  PackedBlock block{format, source.dtype(), source.rows(), source.cols(), 0};
  const int64_t tiles = block.tile_rows();
  std::vector<int64_t> offsets;
  if (format.storage == Storage::kBitmap) {
    std::vector<int64_t> bytes =
        survey != nullptr ? survey->tile_bytes() : ZeroSurvey(pool, format.values, source).tile_bytes();
    for (const int64_t tile : bytes) {
      offsets.push_back(block.element_bytes);
      block.element_bytes += tile;
    }
    offsets.push_back(block.element_bytes);
  } else {
    block.element_bytes = tiles * block.tile_bytes();
  }

  auto memory = std::make_shared<AlignedBuffer<uint8_t>>();
  memory->reset_uninitialised(static_cast<size_t>(block.total_bytes()));
  uint8_t* const data = memory->data();
  if (data == nullptr) return no_memory;
  block.write_header(data);
  clear_padding(block, data);
  std::copy(offsets.begin(), offsets.end(), reinterpret_cast<int64_t*>(data + block.offsets_at()));
  const PackedMatrix matrix(block, memory, data);

  const TilePacker& packer = tile_packer();
  const bool is_dense = format.storage == Storage::kDense;
  std::atomic<bool> fits{true};
  std::atomic<bool> enough{true};
  const int64_t grain = (tiles - 1) / (pool.size() * kRanges) + 1;
  pool.parallel_for(tiles, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    if (!scratch.reserve(block)) enough = false;
    for (int64_t t = begin; t < end && fits.load(std::memory_order_relaxed) && enough; ++t) {
      const int64_t at = kBlockHeader + matrix.element_offset(t);
      auto* const masks =
          reinterpret_cast<uint32_t*>(data + block.masks_at()) + t * block.vectors() * block.mask_words();
      auto* const scales = reinterpret_cast<uint16_t*>(data + block.scales_at()) + t * block.groups() * kTileRows;
      uint8_t* const elements = is_dense ? data + at : scratch.elements.data();
      const int64_t bytes = packer.pack(format, source.tile(t, scratch.rows), block.padded_cols(), scratch.codes.data(),
                                        elements, masks, scales);
      if (bytes != matrix.element_offset(t + 1) - matrix.element_offset(t)) {
        fits = false;
      } else if (!is_dense) {
        std::memcpy(data + at, elements, static_cast<size_t>(bytes));
      }
    }
  });
  if (!enough) return no_memory;
  if (!fits) {
    return Status(Code::kUsage, "the matrix has more than " + std::to_string(format.n) +
                                    " non-zeros in some group of " + std::to_string(format.m) +
                                    " inputs, so it cannot be packed as " + format.name());
  }
  return matrix;
}

}  // namespace espalier
