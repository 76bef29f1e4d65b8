// What launches of both kinds of products check and tell their kernels.
#pragma once

#include <algorithm>

#include "kernels/cuda/product.h"

namespace espalier::cuda {

struct ProductArgs;

// What a launch needs to know of the device.
struct DeviceLimits {
  int device = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;      // of a block
  int all_shared_bytes = 0;  // of a multiprocessor

  // Of a block of which a multiprocessor is to have so many. Each takes 1 KiB of it beside its own.
  int shared_of(int resident) const { return std::min(shared_bytes, all_shared_bytes / resident - 1024); }
};
Result<DeviceLimits> current_limits();

// How many warps of a block, of `warps`, share an item: the busiest team takes the fewest tiles. Adding up an item
// costs about a third of a tile.
int choose_split(int items, int col_tiles, int warps, int multiprocessors);

// kUsage for sizes that no kernel takes.
Status check_sizes(const Product& product);

// What does not depend on how the GPU is used.
void describe(const Product& product, ProductArgs& args);

}  // namespace espalier::cuda
