// What calibration leaves of the inputs of an expert: how long each input column was, and how the columns go together.
// A token's input x may be weighted by its gate g (router weighting): it then counts as the input g·x.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned.h"
#include "core/status.h"
#include "core/thread_pool.h"

namespace espalier {

// Accumulates the inputs of one site: a place in the expert that one or more matrices read.
//
// Results depend only on the rows added, in their order, and on where finish() was called between them: neither on the
// number of threads nor on how the rows were split into calls. Not safe for concurrent calls on one object.
class SiteStatistics {
 public:
  // Rows that are summed before they are added to the Gram matrix.
  static constexpr int64_t kChunk = 256;

  // `width` input columns; `gram`: accumulate the Gram matrix too (2·width² bytes). kOutOfMemory, or kUsage for a width
  // < 1.
  static Result<SiteStatistics> create(int64_t width, bool gram);

  // What `tokens` tokens summed to elsewhere: squared_norms(), and gram(i, j) = gram[i · width + j] for i <= j; without
  // `gram` there is no Gram matrix.
  static Result<SiteStatistics> of_sums(ThreadPool& pool, int64_t tokens, std::vector<double> squared_norms,
                                        const float* gram);

  // Adds `rows` tokens: row r is x[r·stride .. r·stride + width), its weight gate[r], or 1 where `gate` is null.
  void add(ThreadPool& pool, const float* x, int64_t rows, int64_t stride, const float* gate);
  // Adds what another object of the same width, with a Gram matrix if this has one, has seen. Finishes both.
  void merge(ThreadPool& pool, SiteStatistics& other);
  // Column i becomes what column order[i] was, as if the inputs had come so. Finishes; with a Gram matrix another is in
  // memory meanwhile: kOutOfMemory.
  Status permute(ThreadPool& pool, const std::vector<int32_t>& order);
  // Brings the Gram matrix up to date. To be called before gram() is read.
  void finish(ThreadPool& pool);

  int64_t width() const { return width_; }
  int64_t tokens() const { return tokens_; }
  bool has_gram() const { return gram_.size() > 0; }

  // Σ g²·x_j² for every column j, accumulated in float64 in the order of the tokens.
  const std::vector<double>& squared_norms() const { return squared_norms_; }

  // Σ g²·x_i·x_j for i <= j (the matrix is symmetric), accumulated in float32: chunks of kChunk rows are summed by
  // fused multiply-adds, then added. With T tokens the error of an entry is at most
  //   (kChunk + T / kChunk + 4) · 2⁻²⁴ · Σ g²·|x_i·x_j|,
  // which is 8e-5 of that sum at T = 262,144 and in practice behaves like its square root.
  float gram(int64_t i, int64_t j) const;

 private:
  SiteStatistics() = default;
  void store_panel(int64_t panel, const float* x, int64_t rows, int64_t stride, const float* gate);

  int64_t width_ = 0;
  int64_t tokens_ = 0;
  std::vector<double> squared_norms_;
  int64_t pending_rows_ = 0;
  AlignedBuffer<float> pending_;  // the open chunk as panels [kChunk, kPanel]
  AlignedBuffer<float> gram_;     // tiles [kPanel, kPanel] of the upper triangle
};

// The two sites of a gated expert.
struct ExpertStatistics {
  SiteStatistics input;       // read by the gate and up projections; width: hidden size
  SiteStatistics activation;  // read by the down projection; width: the expert's inner size

  static Result<ExpertStatistics> create(int64_t hidden_size, int64_t inner_size, bool gram);
};

}  // namespace espalier
