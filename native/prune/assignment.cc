#include "prune/assignment.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

namespace espalier {
namespace {

bool cancelled(const std::atomic<bool>* cancel) { return cancel != nullptr && cancel->load(std::memory_order_relaxed); }

struct Bid {
  size_t column = 0;
  double best = -std::numeric_limits<double>::infinity();
  double second = -std::numeric_limits<double>::infinity();  // what the next best column is worth
};

Bid best_bid(const float* gain, const std::vector<double>& price) {
  Bid bid;
  for (size_t j = 0; j < price.size(); ++j) {
    const double worth = static_cast<double>(gain[j]) - price[j];
    if (worth <= bid.second) continue;
    if (worth > bid.best) {
      bid.second = bid.best;
      bid.best = worth;
      bid.column = j;
    } else {
      bid.second = worth;
    }
  }
  return bid;
}

// Mean over rows of what the best column is above the mean of the row.
double mean_lead(const std::vector<float>& gain, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    const auto begin = gain.begin() + static_cast<ptrdiff_t>(i * n);
    const auto end = begin + static_cast<ptrdiff_t>(n);
    const double mean = std::accumulate(begin, end, 0.0) / static_cast<double>(n);
    sum += static_cast<double>(*std::max_element(begin, end)) - mean;
  }
  return sum / static_cast<double>(n);
}

// Columns of the rows; −1 where the bids were used up.
std::vector<int32_t> auction(const std::vector<float>& gain, size_t n, const std::atomic<bool>* cancel) {
  std::vector<double> price(n, 0.0);
  std::vector<int32_t> row_of(n, -1);
  std::vector<int32_t> column_of(n, -1);
  std::vector<int32_t> waiting(n);
  std::iota(waiting.rbegin(), waiting.rend(), 0);
  const double step = mean_lead(gain, n) / kBidSteps;
  for (size_t bids = 0; !waiting.empty() && bids < kBids * n && !cancelled(cancel); ++bids) {
    const int32_t row = waiting.back();
    waiting.pop_back();
    const Bid bid = best_bid(gain.data() + static_cast<size_t>(row) * n, price);
    price[bid.column] += bid.best - bid.second + step;
    const int32_t outbid = row_of[bid.column];
    row_of[bid.column] = row;
    column_of[static_cast<size_t>(row)] = static_cast<int32_t>(bid.column);
    if (outbid < 0) continue;
    column_of[static_cast<size_t>(outbid)] = -1;
    waiting.push_back(outbid);
  }
  return column_of;
}

// Rows without a column take those that nobody has.
void complete(std::vector<int32_t>& column_of) {
  std::vector<bool> taken(column_of.size(), false);
  for (const int32_t column : column_of) {
    if (column >= 0) taken[static_cast<size_t>(column)] = true;
  }
  size_t next = 0;
  for (int32_t& column : column_of) {
    if (column >= 0) continue;
    while (taken[next]) ++next;
    column = static_cast<int32_t>(next++);
  }
}

// The rows of a share exchange their columns so that their sum is largest.
Status exchange(const std::vector<float>& gain, size_t n, const int32_t* rows, size_t count,
                std::vector<int32_t>& column_of, const std::atomic<bool>* cancel) {
  std::vector<int32_t> columns(count);
  for (size_t i = 0; i < count; ++i) columns[i] = column_of[static_cast<size_t>(rows[i])];
  std::vector<float> own(count * count);
  for (size_t i = 0; i < count; ++i) {
    const float* from = gain.data() + static_cast<size_t>(rows[i]) * n;
    for (size_t j = 0; j < count; ++j) own[i * count + j] = from[columns[j]];
  }
  const Result<std::vector<int32_t>> best = best_assignment(own, static_cast<int64_t>(count), cancel);
  if (!best.is_ok()) return best.status();
  for (size_t i = 0; i < count; ++i) {
    column_of[static_cast<size_t>(rows[i])] = columns[static_cast<size_t>(best.value()[i])];
  }
  return Status::ok();
}

}  // namespace

Result<std::vector<int32_t>> good_assignment(const std::vector<float>& gain, int64_t n,
                                             const std::atomic<bool>* cancel) {
  if (n <= kAssignedTogether) return best_assignment(gain, n, cancel);
  const auto size = static_cast<size_t>(n);
  std::vector<int32_t> column_of = auction(gain, size, cancel);
  complete(column_of);
  std::vector<int32_t> rows(size);
  std::iota(rows.begin(), rows.end(), 0);
  std::mt19937_64 random(0);
  for (int pass = 0; pass < kExchanges; ++pass) {
    for (size_t i = size; i > 1; --i) std::swap(rows[i - 1], rows[random() % i]);
    for (size_t first = 0; first < size; first += kAssignedTogether) {
      const size_t count = std::min(size - first, static_cast<size_t>(kAssignedTogether));
      ESPALIER_TRY(exchange(gain, size, rows.data() + first, count, column_of, cancel));
    }
  }
  return column_of;
}

Result<std::vector<int32_t>> best_assignment(const std::vector<float>& gain, int64_t n,
                                             const std::atomic<bool>* cancel) {
  const auto size = static_cast<size_t>(n);
  // Costs are negative gains; with the prices every reduced cost stays at least 0, and 0 along the assignment.
  std::vector<double> row_price(size, 0.0);
  std::vector<double> column_price(size, 0.0);
  std::vector<int32_t> row_of(size, -1);
  std::vector<int32_t> column_of(size, -1);
  std::vector<double> distance(size);
  std::vector<int32_t> from(size);  // the row before a column on the shortest path to it
  std::vector<bool> settled(size);
  for (size_t start = 0; start < size; ++start) {
    if (cancelled(cancel)) return Status(Code::kAborted, "stopped");
    distance.assign(size, std::numeric_limits<double>::infinity());
    settled.assign(size, false);
    size_t row = start;
    double length = 0;
    size_t column = 0;
    for (;;) {
      column = size;
      for (size_t j = 0; j < size; ++j) {
        if (settled[j]) continue;
        const double cost = -static_cast<double>(gain[row * size + j]) - row_price[row] - column_price[j];
        if (length + cost < distance[j]) {
          distance[j] = length + cost;
          from[j] = static_cast<int32_t>(row);
        }
        if (column == size || distance[j] < distance[column]) column = j;
      }
      settled[column] = true;
      length = distance[column];
      if (row_of[column] < 0) break;
      row = static_cast<size_t>(row_of[column]);
    }
    row_price[start] += length;
    for (size_t j = 0; j < size; ++j) {
      if (!settled[j] || j == column) continue;
      column_price[j] -= length - distance[j];
      row_price[static_cast<size_t>(row_of[j])] += length - distance[j];
    }
    // Along the path every row moves to the column that it led to.
    for (size_t row_moved = size; row_moved != start;) {
      row_moved = static_cast<size_t>(from[column]);
      const int32_t left = column_of[row_moved];
      row_of[column] = static_cast<int32_t>(row_moved);
      column_of[row_moved] = static_cast<int32_t>(column);
      column = static_cast<size_t>(left);
    }
  }
  return column_of;
}

}  // namespace espalier
