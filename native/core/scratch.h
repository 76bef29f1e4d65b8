// Memory that a computation needs while it runs, kept for the next one: to map fresh pages and clear them would cost as
// much as a matrix product.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/aligned.h"

namespace espalier {

// A stack of blocks. What is taken lies on huge pages and stays where it is until it is released. One thread's.
class Scratch {
 public:
  // Where it stands; what is taken later is released with it.
  struct Mark {
    size_t block = 0;
    size_t used = 0;
  };

  Mark mark() const { return at_; }
  void release(Mark mark) {
    at_ = mark;
    if (mark.block == 0 && mark.used == 0) drop_excess();
  }

  // 64-byte aligned and uninitialised, with AlignedBuffer's slack behind it; nullptr if there is no memory.
  uint8_t* take(size_t bytes) {
    bytes = (bytes + kSlack + kAlignment - 1) / kAlignment * kAlignment;
    while (at_.block < blocks_.size() && at_.used + bytes > blocks_[at_.block].size()) at_ = {at_.block + 1, 0};
    if (at_.block == blocks_.size()) blocks_.emplace_back().reset_uninitialised(std::max(bytes, kLeastBlock));
    AlignedBuffer<uint8_t>& block = blocks_[at_.block];
    if (block.data() == nullptr) {
      blocks_.pop_back();
      return nullptr;
    }
    at_.used += bytes;
    return block.data() + at_.used - bytes;
  }

 private:
  static constexpr size_t kSlack = AlignedBuffer<uint8_t>::kSlack;
  static constexpr size_t kLeastBlock = 2 * kHugePage - kSlack;
  static constexpr size_t kMostKept = 64 * 1024 * 1024;

  void drop_excess() {
    size_t bytes = 0;
    std::erase_if(blocks_, [&](const AlignedBuffer<uint8_t>& block) {
      bytes += block.size();
      return bytes > kMostKept;
    });
  }

  std::vector<AlignedBuffer<uint8_t>> blocks_;
  Mark at_;
};

}  // namespace espalier
