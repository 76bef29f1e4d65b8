// The lists of a step as its kernels read them.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "engine/cuda/forward.h"
#include "engine/step.h"

namespace espalier::cuda {

// Rows up to which the keys of each are shared out; more fill the GPU by themselves.
inline constexpr int kMostSplitRows = 64;

// How the keys of a row are shared out.
struct KeySplit {
  int splits = 1;
  int chunks = 1;  // of each
};

// They lie in one buffer of 32-bit integers. The request and the rows that it asks answers of must outlive this.
class StepLists {
 public:
  StepLists(const StepRequest& request, const std::vector<int32_t>& answered)
      : request_(request), answered_(answered), rows_(request.batch.rows), split_(split_of(request)) {
    for (const Slice& slice : request.batch.slices) {
      blocks_ += static_cast<int64_t>(slice.blocks.size());
      runs_ += (slice.count + kMostRun - 1) / kMostRun;
    }
    if (rows_ <= kMostSplitRows || runs_ * kLeastRun > rows_) runs_ = 0;
  }

  int64_t bytes() const { return (run_counts() + runs_) * static_cast<int64_t>(sizeof(int32_t)); }
  const KeySplit& split() const { return split_; }

  void write(int32_t* out) const {
    std::copy(request_.tokens.begin(), request_.tokens.end(), out);
    int32_t table = 0;
    for (const Slice& slice : request_.batch.slices) {
      for (int64_t i = 0; i < slice.count; ++i) {
        out[positions() + slice.first_row + i] = static_cast<int32_t>(slice.position + i);
        out[tables() + slice.first_row + i] = table;
      }
      std::copy(slice.blocks.begin(), slice.blocks.end(), out + blocks() + table);
      table += static_cast<int32_t>(slice.blocks.size());
    }
    if (runs_ > 0) write_runs(out + run_firsts(), out + run_counts());
    std::copy(answered_.begin(), answered_.end(), out + picks());
    std::fill_n(out + targets(), answered_.size(), 0);
    int32_t* target = out + blocks() - request_.scores.size();
    for (const ScoreRequest& score : request_.scores) *target++ = score.target;
  }

  // Where the lists are in a copy on a device.
  StepRows rows_of(const int32_t* copy) const {
    return {.places = {.rows = static_cast<int>(rows_),
                       .positions = copy + positions(),
                       .tables = copy + tables(),
                       .blocks = copy + blocks()},
            .tokens = copy,
            .splits = split_.splits,
            .split_chunks = split_.chunks,
            .runs = static_cast<int>(runs_),
            .run_firsts = copy + run_firsts(),
            .run_counts = copy + run_counts()};
  }
  const int32_t* picks_of(const int32_t* copy) const { return copy + picks(); }
  const int32_t* targets_of(const int32_t* copy) const { return copy + targets(); }

 private:
  // Rows that a run has on average at least, where rows attend in runs: one row alone leaves most of a block's work
  // empty.
  static constexpr int64_t kLeastRun = 4;

  // By the longest row's chunks, up to a power of two, so that a sequence that grows keeps the shape of its steps for
  // long.
  static KeySplit split_of(const StepRequest& request) {
    if (request.batch.rows > kMostSplitRows) return {};
    int64_t longest = 0;
    for (const Slice& slice : request.batch.slices) longest = std::max(longest, slice.position + slice.count);
    const auto chunks = static_cast<int>(std::bit_ceil(static_cast<uint64_t>((longest - 1) / kAttendChunk + 1)));
    const int splits = std::min(chunks, kMostSplits);
    return {splits, chunks / splits};
  }

  int64_t positions() const { return rows_; }
  int64_t tables() const { return 2 * rows_; }
  int64_t picks() const { return 3 * rows_; }
  int64_t targets() const { return picks() + static_cast<int64_t>(answered_.size()); }
  int64_t blocks() const { return targets() + static_cast<int64_t>(answered_.size()); }
  int64_t run_firsts() const { return blocks() + blocks_; }
  int64_t run_counts() const { return run_firsts() + runs_; }

  void write_runs(int32_t* firsts, int32_t* counts) const {
    for (const Slice& slice : request_.batch.slices) {
      for (int64_t done = 0; done < slice.count; done += kMostRun) {
        *firsts++ = static_cast<int32_t>(slice.first_row + done);
        *counts++ = static_cast<int32_t>(std::min<int64_t>(slice.count - done, kMostRun));
      }
    }
  }

  const StepRequest& request_;
  const std::vector<int32_t>& answered_;
  int64_t rows_;
  KeySplit split_;
  int64_t blocks_ = 0;
  int64_t runs_ = 0;  // of rows that attend together, 0 if rows do one by one
};

}  // namespace espalier::cuda
