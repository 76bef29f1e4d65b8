#include "prune/routed_batch.h"

#include <algorithm>
#include <mutex>

namespace espalier {
namespace {

int64_t block_count(int64_t rows) { return (rows + kPanel - 1) / kPanel; }

}  // namespace

template <class Count, class Body>
void RoutedBatch::spread(Count&& count, Body&& body) const {
  std::vector<int64_t> begin(experts_.size() + 1, 0);
  for (size_t e = 0; e < experts_.size(); ++e) begin[e + 1] = begin[e] + count(e);
  pool_.parallel_for(begin.back(), 1, [&](int64_t from, int64_t to) {
    auto e = static_cast<size_t>(std::upper_bound(begin.begin(), begin.end(), from) - begin.begin()) - 1;
    for (int64_t i = from; i < to; ++i) {
      while (i >= begin[e + 1]) ++e;
      body(e, i - begin[e]);
    }
  });
}

std::vector<float> RoutedBatch::gates_of(size_t expert, int64_t block) const {
  const std::vector<Slot>& slots = slots_[expert];
  std::vector<float> gates;
  for (int64_t s = block * kPanel; s < std::min((block + 1) * kPanel, rows(expert)); ++s) {
    gates.push_back(slots[static_cast<size_t>(s)].gate);
  }
  return gates;
}

Status RoutedBatch::forward(std::span<const int64_t> tokens) {
  tokens_ = tokens;
  slots_.assign(experts_.size(), {});
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto token = static_cast<size_t>(tokens[i]);
    for (int64_t r = routed_.first[token]; r < routed_.first[token + 1]; ++r) {
      const RoutedTokens::Route& route = routed_.routes[static_cast<size_t>(r)];
      const int32_t e = route.expert - first_;
      if (e < 0 || e >= static_cast<int32_t>(experts_.size())) continue;
      slots_[static_cast<size_t>(e)].push_back({static_cast<int64_t>(i), route.gate});
    }
  }
  first_slot_.assign(experts_.size() + 1, 0);
  slots_of_.assign(tokens.size(), {});
  for (size_t e = 0; e < experts_.size(); ++e) {
    ESPALIER_TRY(experts_[e].begin_batch(rows(e)));
    for (int64_t s = 0; s < rows(e); ++s) {
      slots_of_[static_cast<size_t>(slots_[e][static_cast<size_t>(s)].row)].push_back(first_slot_[e] + s);
    }
    first_slot_[e + 1] = first_slot_[e] + rows(e);
  }
  const size_t size = tokens.size() * static_cast<size_t>(hidden_);
  x_.resize(size);
  missing_.resize(size);
  outputs_.resize(static_cast<size_t>(first_slot_.back() * hidden_));
  for (size_t i = 0; i < tokens.size(); ++i) {
    ESPALIER_TRY(input_.read(tokens[i], 1, x_.data() + static_cast<int64_t>(i) * hidden_));
    ESPALIER_TRY(goal_.read(tokens[i], 1, missing_.data() + static_cast<int64_t>(i) * hidden_));
  }

  spread([&](size_t e) { return experts_[e].pack_tasks(); }, [&](size_t e, int64_t task) { experts_[e].pack(task); });
  spread([&](size_t e) { return experts_[e].blocks(); },
         [&](size_t e, int64_t block) {
           const float* x[kPanel];
           float* y[kPanel];
           const int64_t begin = block * kPanel;
           for (int64_t s = begin; s < std::min(begin + kPanel, rows(e)); ++s) {
             x[s - begin] = x_.data() + slots_[e][static_cast<size_t>(s)].row * hidden_;
             y[s - begin] = outputs_.data() + (first_slot_[e] + s) * hidden_;
           }
           experts_[e].forward(block, x, y);
         });
  std::vector<float> gates(static_cast<size_t>(first_slot_.back()));
  for (size_t e = 0; e < experts_.size(); ++e) {
    for (int64_t s = 0; s < rows(e); ++s)
      gates[static_cast<size_t>(first_slot_[e] + s)] = slots_[e][static_cast<size_t>(s)].gate;
  }
  pool_.parallel_for(static_cast<int64_t>(tokens.size()), 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = missing_.data() + i * hidden_;
      for (const int64_t slot : slots_of_[static_cast<size_t>(i)]) {
        const float* output = outputs_.data() + slot * hidden_;
        const float gate = gates[static_cast<size_t>(slot)];
        for (int64_t k = 0; k < hidden_; ++k) row[k] -= gate * output[k];
      }
    }
  });
  return Status::ok();
}

Result<double> RoutedBatch::loss(const RecoveryLoss& loss) const {
  const auto rows_all = static_cast<int64_t>(tokens_.size());
  std::vector<double> sums(static_cast<size_t>(block_count(rows_all)));
  std::mutex mutex;
  Status failed;
  pool_.parallel_for(block_count(rows_all), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = b * kPanel;
      const Result<double> part =
          loss.loss(tokens_.data() + row, std::min(kPanel, rows_all - row), missing_.data() + row * hidden_);
      if (part.is_ok()) {
        sums[static_cast<size_t>(b)] = part.value();
      } else {
        const std::lock_guard lock(mutex);
        failed = part.status();
      }
    }
  });
  if (!failed.is_ok()) return failed;
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

Status RoutedBatch::backward(const RecoveryLoss& loss) {
  const auto rows_all = static_cast<int64_t>(tokens_.size());
  std::mutex mutex;
  Status failed;
  pool_.parallel_for(block_count(rows_all), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = b * kPanel;
      Status status =
          loss.gradient(tokens_.data() + row, std::min(kPanel, rows_all - row), missing_.data() + row * hidden_);
      if (status.is_ok()) continue;
      const std::lock_guard lock(mutex);
      failed = std::move(status);
    }
  });
  ESPALIER_TRY(failed);
  spread([&](size_t e) { return experts_[e].blocks(); },
         [&](size_t e, int64_t block) {
           const float* gradient[kPanel];
           const int64_t begin = block * kPanel;
           for (int64_t s = begin; s < std::min(begin + kPanel, rows(e)); ++s) {
             gradient[s - begin] = missing_.data() + slots_[e][static_cast<size_t>(s)].row * hidden_;
           }
           experts_[e].backward(block, gradient, gates_of(e, block).data());
         });
  return Status::ok();
}

void RoutedBatch::step(const AdamStep& adam) {
  for (ExpertTrainer& expert : experts_) expert.make_moments();
  spread([&](size_t e) { return experts_[e].step_tasks(); },
         [&](size_t e, int64_t task) { experts_[e].step(task, adam); });
}

void RoutedBatch::measure(std::vector<Sensitivity>& sensitivities) const {
  std::vector<std::vector<std::vector<double>>> sums(experts_.size());
  for (size_t e = 0; e < experts_.size(); ++e) {
    const auto size = static_cast<size_t>(hidden_ + 3 * experts_[e].width());
    sums[e].assign(static_cast<size_t>(experts_[e].blocks()), std::vector<double>(size));
  }
  spread([&](size_t e) { return experts_[e].blocks(); },
         [&](size_t e, int64_t block) {
           experts_[e].measure(block, gates_of(e, block).data(), sums[e][static_cast<size_t>(block)].data());
         });
  for (size_t e = 0; e < experts_.size(); ++e) {
    Sensitivity& sensitivity = sensitivities[e];
    sensitivity.tokens += static_cast<double>(rows(e));
    for (const std::vector<double>& block : sums[e]) {
      size_t at = 0;
      for (std::vector<double>* values :
           {&sensitivity.input, &sensitivity.gate, &sensitivity.up, &sensitivity.activation}) {
        for (double& value : *values) value += block[at++];
      }
    }
  }
}

}  // namespace espalier
