#include "prune/statistics.h"

#include <algorithm>
#include <string>

#include "prune/panels.h"

namespace espalier {

Result<SiteStatistics> SiteStatistics::create(int64_t width, bool gram) {
  if (width < 1) {
    return Status(Code::kUsage,
                  "statistics of an input with " + std::to_string(width) + " columns: at least 1 is needed");
  }
  SiteStatistics site;
  site.width_ = width;
  site.squared_norms_.assign(static_cast<size_t>(width), 0.0);
  if (gram) {
    const int64_t panels = panel_count(width);
    site.gram_.reset(static_cast<size_t>(triangle_index(panels, 0) * kPanel * kPanel));
    site.pending_.reset(static_cast<size_t>(panels * kChunk * kPanel));
    if (site.gram_.size() == 0 || site.pending_.size() == 0) {
      return Status(Code::kOutOfMemory, "no memory for the Gram matrix of " + std::to_string(width) +
                                            " input columns (" + std::to_string((2 * width * width) >> 20) +
                                            " MiB): free memory, or choose a method that needs no Gram matrix");
    }
  }
  return site;
}

Result<SiteStatistics> SiteStatistics::of_sums(ThreadPool& pool, int64_t tokens, std::vector<double> squared_norms,
                                               const float* gram) {
  const auto width = static_cast<int64_t>(squared_norms.size());
  Result<SiteStatistics> made = create(width, gram != nullptr);
  if (!made.is_ok()) return made;
  SiteStatistics& site = made.value();
  site.tokens_ = tokens;
  site.squared_norms_ = std::move(squared_norms);
  if (gram == nullptr) return made;
  pool.parallel_for(triangle_index(panel_count(width), 0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const TriangleTile tile = triangle_tile(t);
      for (int64_t i = 0; i < panel_width(width, tile.column); ++i) {
        const float* row = gram + (tile.column * kPanel + i) * width + tile.row * kPanel;
        std::copy(row, row + panel_width(width, tile.row), site.gram_.data() + (t * kPanel + i) * kPanel);
      }
    }
  });
  return made;
}

void SiteStatistics::store_panel(int64_t panel, const float* x, int64_t rows, int64_t stride, const float* gate) {
  const int64_t first = panel * kPanel;
  const int64_t columns = panel_width(width_, panel);
  double* norms = squared_norms_.data() + first;
  float* pending = has_gram() ? pending_.data() + (panel * kChunk + pending_rows_) * kPanel : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * stride + first;
    const float weight = gate == nullptr ? 1.0f : gate[r];
    for (int64_t j = 0; j < columns; ++j) {
      const double value = static_cast<double>(weight) * static_cast<double>(row[j]);
      norms[j] += value * value;
    }
    if (pending == nullptr) continue;
    for (int64_t j = 0; j < columns; ++j) pending[r * kPanel + j] = weight * row[j];
  }
}

void SiteStatistics::add(ThreadPool& pool, const float* x, int64_t rows, int64_t stride, const float* gate) {
  while (rows > 0) {
    const int64_t taken = has_gram() ? std::min(rows, kChunk - pending_rows_) : rows;
    pool.parallel_for(panel_count(width_), 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) store_panel(panel, x, taken, stride, gate);
    });
    tokens_ += taken;
    if (has_gram()) {
      pending_rows_ += taken;
      if (pending_rows_ == kChunk) finish(pool);
    }
    x += taken * stride;
    rows -= taken;
    if (gate != nullptr) gate += taken;
  }
}

void SiteStatistics::finish(ThreadPool& pool) {
  if (pending_rows_ == 0) return;
  const PanelKernels<float>& kernels = panel_kernels().f32;
  pool.parallel_for(triangle_index(panel_count(width_), 0), 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const TriangleTile tile = triangle_tile(t);  // rows of the Gram matrix: tile.column <= tile.row: its columns
      kernels.update(pending_rows_, pending_.data() + tile.column * kChunk * kPanel,
                     pending_.data() + tile.row * kChunk * kPanel, 1.0f, gram_.data() + t * kPanel * kPanel, kPanel);
    }
  });
  pending_rows_ = 0;
}

void SiteStatistics::merge(ThreadPool& pool, SiteStatistics& other) {
  finish(pool);
  other.finish(pool);
  tokens_ += other.tokens_;
  for (size_t j = 0; j < squared_norms_.size(); ++j) squared_norms_[j] += other.squared_norms_[j];
  pool.parallel_for(static_cast<int64_t>(gram_.size()), int64_t{1} << 18, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) gram_.data()[i] += other.gram_.data()[i];
  });
}

Status SiteStatistics::permute(ThreadPool& pool, const std::vector<int32_t>& order) {
  finish(pool);
  std::vector<double> norms;
  norms.reserve(order.size());
  for (const int32_t j : order) norms.push_back(squared_norms_[static_cast<size_t>(j)]);
  squared_norms_ = std::move(norms);
  if (!has_gram()) return Status::ok();
  AlignedBuffer<float> permuted(gram_.size());
  if (permuted.size() == 0) {
    return Status(Code::kOutOfMemory, "no memory to permute a Gram matrix of " + std::to_string(width_) + " columns");
  }
  pool.parallel_for(triangle_index(panel_count(width_), 0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const TriangleTile tile = triangle_tile(t);
      for (int64_t i = 0; i < panel_width(width_, tile.column); ++i) {
        for (int64_t j = 0; j < panel_width(width_, tile.row); ++j) {
          const auto [low, high] = std::minmax(order[static_cast<size_t>(tile.column * kPanel + i)],
                                               order[static_cast<size_t>(tile.row * kPanel + j)]);
          permuted[static_cast<size_t>((t * kPanel + i) * kPanel + j)] = gram(low, high);
        }
      }
    }
  });
  gram_ = std::move(permuted);
  return Status::ok();
}

float SiteStatistics::gram(int64_t i, int64_t j) const {
  const int64_t tile = triangle_index(j / kPanel, i / kPanel);
  return gram_[static_cast<size_t>((tile * kPanel + i % kPanel) * kPanel + j % kPanel)];
}

Result<ExpertStatistics> ExpertStatistics::create(int64_t hidden_size, int64_t inner_size, bool gram) {
  Result<SiteStatistics> input = SiteStatistics::create(hidden_size, gram);
  if (!input.is_ok()) return input.status();
  Result<SiteStatistics> activation = SiteStatistics::create(inner_size, gram);
  if (!activation.is_ok()) return activation.status();
  return ExpertStatistics{std::move(input.value()), std::move(activation.value())};
}

}  // namespace espalier
