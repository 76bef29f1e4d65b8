#include "engine/attend.h"

#include <algorithm>
#include <array>
#include <atomic>

namespace espalier {
namespace {

// Rows of one sequence and KV head that go through the cache together. Row i of the `count` is head
// (first + i) % group of the KV head's group, in token (first + i) / group of the slice.
struct Tile {
  const Slice* slice;
  int64_t kv_head;
  int64_t first;
  int64_t count;
  int64_t first_chunk;
  int64_t chunks;
  int64_t partials;    // offset of a split tile's partials
  int32_t unfinished;  // chunks of a split tile that are not done
};

// A tile, or one chunk of it.
struct Item {
  int64_t tile;
  int64_t chunk;  // −1: all, one after the other
};

constexpr int64_t kAllChunks = -1;

class Tiles {
 public:
  Tiles(const AttendShape& shape, const Batch& batch) : shape_(shape), group_(shape.heads / shape.kv_heads) {
    for (const Slice& slice : batch.slices) add(slice);
    // The last tiles of a long slice see the most keys: they go first, so that no thread is left alone with one.
    std::reverse(items.begin(), items.end());
  }

  AttendRow row(const Tile& tile, int64_t i, const float* queries) const {
    const int64_t token = (tile.first + i) / group_;
    const int64_t last = tile.slice->position + token + 1;
    return {queries + offset(tile, i), shape_.window > 0 ? std::max<int64_t>(0, last - shape_.window) : 0, last};
  }
  // Where row i begins in [rows][heads · head_dim].
  int64_t offset(const Tile& tile, int64_t i) const {
    const int64_t row = tile.slice->first_row + (tile.first + i) / group_;
    const int64_t head = tile.kv_head * group_ + (tile.first + i) % group_;
    return (row * shape_.heads + head) * shape_.head_dim;
  }

  std::vector<Tile> tiles;
  std::vector<Item> items;
  int64_t shared_floats = 0;  // partials of all split tiles
  int64_t own_floats = 0;     // partials of the largest other tile

 private:
  void add(const Slice& slice) {
    const int64_t rows = slice.count * group_;
    // Few rows are split over their context, many over the rows, whose partials would fill memory.
    const bool split = rows <= kAttendRows;
    const int64_t partial = attend_partial_floats(shape_.head_dim);
    for (int64_t h = 0; h < shape_.kv_heads; ++h) {
      for (int64_t first = 0; first < rows; first += kAttendRows) {
        Tile tile{&slice, h, first, std::min<int64_t>(kAttendRows, rows - first), 0, 0, shared_floats, 0};
        tile.first_chunk = row(tile, 0, nullptr).first / kKvChunk;
        tile.chunks = (row(tile, tile.count - 1, nullptr).last - 1) / kKvChunk + 1 - tile.first_chunk;
        const auto index = static_cast<int64_t>(tiles.size());
        const int64_t floats = tile.count * tile.chunks * partial;
        if (split) {
          tile.unfinished = static_cast<int32_t>(tile.chunks);
          shared_floats += floats;
          for (int64_t c = 0; c < tile.chunks; ++c) items.push_back({index, c});
        } else {
          own_floats = std::max(own_floats, floats);
          items.push_back({index, kAllChunks});
        }
        tiles.push_back(tile);
      }
    }
  }

  const AttendShape& shape_;
  int64_t group_;
};

}  // namespace

void AttendLoop::run(const Compute& compute, const AttendShape& shape, const Batch& batch, KvLayer& cache,
                     const float* queries, float* out) {
  Tiles work(shape, batch);
  const int64_t partial = attend_partial_floats(shape.head_dim);
  const int64_t own = attend_scratch_floats(shape.head_dim) + work.own_floats;
  const auto count = static_cast<int64_t>(work.items.size());
  partials_.ensure(static_cast<size_t>(work.shared_floats));

  const auto kernel = compute.kernels.attend[static_cast<size_t>(cache.type())];
  // A chunk of a tile, whose rows are put into `rows`.
  const auto task_of = [&](const Tile& tile, int64_t chunk, AttendRow* rows, float* scratch, float* partials) {
    for (int64_t r = 0; r < tile.count; ++r) rows[r] = work.row(tile, r, queries);
    return AttendTask{.rows = rows,
                      .count = tile.count,
                      .blocks = tile.slice->blocks.data(),
                      .keys = cache.keys(tile.kv_head),
                      .values = cache.values(tile.kv_head),
                      .block_stride = cache.block_stride(),
                      .head_dim = shape.head_dim,
                      .scale = shape.scale,
                      .chunk = tile.first_chunk + chunk,
                      .scratch = scratch,
                      .partials = partials + chunk * partial,
                      .partial_stride = tile.chunks * partial};
  };
  compute.pool.parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    thread_local AlignedBuffer<float> memory;
    memory.ensure(static_cast<size_t>(own));
    float* scratch = memory.data();
    std::array<AttendRow, kAttendRows> rows;
    std::array<AttendRow, kAttendRows> next_rows;
    for (int64_t i = begin; i < end; ++i) {
      const Item& item = work.items[static_cast<size_t>(i)];
      Tile& tile = work.tiles[static_cast<size_t>(item.tile)];
      const bool split = item.chunk != kAllChunks;
      float* partials = split ? partials_.data() + tile.partials : scratch + attend_scratch_floats(shape.head_dim);
      const int64_t row_stride = tile.chunks * partial;
      // The thread goes on with the next item, unless another has taken it.
      AttendTask next{};
      const bool has_next = i + 1 < count;
      if (has_next) {
        const Item& after = work.items[static_cast<size_t>(i + 1)];
        const Tile& next_tile = work.tiles[static_cast<size_t>(after.tile)];
        next = task_of(next_tile, std::max<int64_t>(after.chunk, 0), next_rows.data(), nullptr, partials);
      }
      const auto attend = [&](int64_t chunk, const AttendTask* following) {
        AttendTask task = task_of(tile, chunk, rows.data(), scratch, partials);
        task.next = following;
        kernel(task);
      };
      if (split) {
        attend(item.chunk, has_next ? &next : nullptr);
        // Whoever finishes a tile combines its chunks, in their order.
        if (std::atomic_ref(tile.unfinished).fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
      } else {
        for (int64_t c = 0; c < tile.chunks; ++c) attend(c, nullptr);
      }
      for (int64_t r = 0; r < tile.count; ++r) {
        const int64_t first = rows[static_cast<size_t>(r)].first / kKvChunk - tile.first_chunk;
        const int64_t past = (rows[static_cast<size_t>(r)].last - 1) / kKvChunk + 1 - tile.first_chunk;
        compute.kernels.attend_combine(partials + r * row_stride + first * partial, partial, past - first,
                                       shape.head_dim, out + work.offset(tile, r));
      }
    }
  });
}

}  // namespace espalier
