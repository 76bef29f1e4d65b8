// The weights that a warp reads, tile after tile from the first layer's first product to the last layer's last, through
// a ring in shared memory. One warp of a block fetches for all others, a lane for each: as far ahead of them as there
// is room, and as it is known which tiles come, those of experts when the router has chosen.
#pragma once

#include "kernels/cuda/decode/context.cuh"

namespace espalier::cuda {

// The items, rows of tiles, that a warp takes of a product, and its part of their columns. The columns of kDown are
// those of all chosen experts, one after the other; kGateUp has the row tiles of all of them.
struct DecodeShare {
  int item;
  int stride;
  int items;
  int part;
  int columns;

  __device__ DecodeShare(const DecodeProduct& product, int kind, int kept, int warp) {
    const int teams = kDecodeWarps / product.split;
    part = warp % product.split;
    item = blockIdx.x * teams + warp / product.split;
    stride = gridDim.x * teams;
    items = kind == kGateUp ? kept * product.row_tiles : product.row_tiles;
    columns = kind == kDown ? kept * product.col_tiles : product.col_tiles;
  }
};

// Where the next tile goes in a ring: one that does not fit behind the last goes to the beginning.
struct RingPlace {
  int at = 0;

  // Bytes that it takes, with those left out at the end.
  __device__ int take(int bytes, int room) {
    const bool wraps = at + bytes > room;
    const int taken = bytes + (wraps ? room - at : 0);
    if (wraps) at = 0;
    return taken;
  }
};

// The warp's own tiles, in order.
class TileReader {
 public:
  __device__ TileReader(DecodeContext& context, uint32_t ring, int room)
      : ring_(ring),
        room_(room),
        barriers_(ptx::shared_address(context.barriers[threadIdx.x / 32])),
        done_at_(ptx::shared_address(&context.done[threadIdx.x / 32])) {}

  // Waits for the next tile, which has so many bytes; where it lies.
  __device__ uint32_t next(int bytes) {
    done_.x += place_.take(bytes, room_);
    ptx::barrier_wait(barriers_ + 8 * (done_.y % kTilesAhead), done_.y / kTilesAhead % 2);
    ++done_.y;
    const uint32_t at = ring_ + place_.at;
    place_.at += bytes;
    return at;
  }
  // The lanes have read all tiles that next() gave. A warp's loads of shared memory are not overtaken by its stores
  // there.
  __device__ void release() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::store_shared_8(done_at_, done_);
  }

 private:
  const uint32_t ring_;
  const int room_;
  const uint32_t barriers_;
  const uint32_t done_at_;
  RingPlace place_;
  uint2 done_{};
};

// Fetches the tiles of one warp; a lane's.
class TileFetcher {
 public:
  __device__ TileFetcher(const DecodeTask& task, DecodeContext& context, int warp, uint32_t ring)
      : task_(task),
        context_(context),
        warp_(warp),
        ring_(ring),
        room_(task.room.ring),
        barriers_(ptx::shared_address(context.barriers[warp])),
        done_at_(ptx::shared_address(&context.done[warp])),
        open_at_(ptx::shared_address(&context.open)) {}

  __device__ void run() {
    const uint64_t policy = ptx::read_once_policy();
    const uint32_t last = task_.layers * kDecodeProducts;
    uint32_t landed = 0;
    for (;;) {
      while (row_ >= rows_) {
        if (product_ == last) return;
        if (product_ < ptx::load_acquire(open_at_).x) begin_product();
      }
      if (landed != fetched_.y &&
          ptx::barrier_is_complete(barriers_ + 8 * (landed % kTilesAhead), landed / kTilesAhead % 2)) {
        ++landed;
      }
      const int on_the_way = static_cast<int>(fetched_.y - landed) * bytes_;
      if (on_the_way > 0 && on_the_way + bytes_ > kBytesOnTheWay) continue;
      const uint2 done = ptx::load_shared_8(done_at_);
      if (fetched_.y - done.y == kTilesAhead) continue;
      RingPlace place = place_;
      const int taken = place.take(bytes_, room_);
      if (static_cast<int>(fetched_.x - done.x) + taken > room_) continue;
      const uint32_t barrier = barriers_ + 8 * (fetched_.y % kTilesAhead);
      ptx::barrier_expect(barrier, bytes_);
      ptx::bulk_load(ring_ + place.at, tiles_ + column_ * bytes_, bytes_, barrier, policy);
      place_.at = place.at + bytes_;
      fetched_.x += taken;
      ++fetched_.y;
      column_ += split_;
      settle();
    }
  }

 private:
  __device__ void begin_product() {
    kind_ = product_ % kDecodeProducts;
    const DecodeProduct& product = task_.products[kind_];
    const DecodeShare share(product, kind_, context_.kept, warp_);
    of_layer_ = context_.layers[product_ / kDecodeProducts % 2].tiles[kind_];
    bytes_ = product.tile_bytes;
    col_tiles_ = product.col_tiles;
    row_tiles_ = product.row_tiles;
    split_ = product.split;
    part_ = share.part;
    stride_ = share.stride;
    row_ = share.item;
    rows_ = share.items;
    kept_ = context_.kept;
    ++product_;
    column_ = part_;
    chosen_ = 0;
    settle();
  }
  // Goes on to the expert and the item that the column is of, and finds their tiles.
  __device__ void settle() {
    while (column_ >= col_tiles_) {
      if (kind_ == kDown && ++chosen_ < kept_) {
        column_ -= col_tiles_;
        continue;
      }
      row_ += stride_;
      column_ = part_;
      chosen_ = 0;
      if (row_ >= rows_) return;
    }
    if (row_ >= rows_) return;
    int64_t row = row_;
    if (kind_ == kGateUp) {
      const int chosen = row_ / row_tiles_;
      row += static_cast<int64_t>(context_.experts[chosen] - chosen) * row_tiles_;
    }
    if (kind_ == kDown) row += static_cast<int64_t>(context_.experts[chosen_]) * row_tiles_;
    tiles_ = of_layer_ + row * (col_tiles_ * bytes_);
  }

  const DecodeTask& task_;
  const DecodeContext& context_;
  const int warp_;
  const uint32_t ring_;
  const int room_;
  const uint32_t barriers_;
  const uint32_t done_at_;
  const uint32_t open_at_;
  RingPlace place_;
  uint2 fetched_{};  // bytes and tiles, as TileReader counts what is done
  uint32_t product_ = 0;
  // Of the product before that one: what is next of it.
  const uint8_t* of_layer_ = nullptr;
  const uint8_t* tiles_ = nullptr;
  int kind_ = 0;
  int bytes_ = 0;
  int col_tiles_ = 0;
  int row_tiles_ = 0;
  int split_ = 1;
  int part_ = 0;
  int stride_ = 0;
  int row_ = 0;
  int rows_ = 0;
  int kept_ = 0;
  int chosen_ = 0;
  int column_ = 0;
};

}  // namespace espalier::cuda
