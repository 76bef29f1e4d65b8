#include "prune/assignment.h"

#include <limits>

namespace espalier {

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
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return Status(Code::kAborted, "stopped");
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
