// Where the elements of a tile go among the lanes of a warp, for tiles of bf16 values and of codes alike.
#pragma once

#include <utility>

namespace espalier::cuda {

inline int row_of(int lane, int half) { return lane / 4 + 8 * half; }

// Where the 8 inputs of part `part` that a lane of a dense tile owns lie.
struct DenseRun {
  int row;
  int input;
};
inline DenseRun dense_run(int part, int lane) { return {row_of(lane, part % 2), part / 2 * 32 + lane % 4 * 8}; }

// Where register j of a lane's A operand of 2:4 comes from: its row, and the first of two neighbouring stored values of
// the sixteen that the row has in 32 inputs.
struct Fragment {
  int row;
  int value;
};
inline Fragment fragment(int lane, int j) { return {row_of(lane, j % 2), lane % 4 * 2 + j / 2 * 8}; }

// The places of the two of four neighbours that 2:4 stores, zeros among them where there are fewer; false if more are
// not zero.
template <class Element>
bool find_two(const Element* four, int (&where)[2]) {
  where[0] = 0;
  where[1] = 0;
  int count = 0;
  for (int i = 0; i < 4; ++i) {
    if (four[i] == 0) continue;
    if (count == 2) return false;
    where[count++] = i;
  }
  // The hardware wants two different positions in ascending order.
  if (count == 0) where[1] = 1;
  if (count == 1) where[1] = where[0] == 3 ? 2 : where[0] + 1;
  if (where[0] > where[1]) std::swap(where[0], where[1]);
  return true;
}

// The lane that has the positions of the groups 4 · half … 4 · half + 3 of four in row `row` and 32 inputs u.
inline int positions_lane(int row, int u, int half) { return row % 8 * 4 + u % 2 * 2 + half; }

}  // namespace espalier::cuda
