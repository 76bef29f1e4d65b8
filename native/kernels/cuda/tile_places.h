// Where the elements of a tile go among the lanes of a warp, for tiles of bf16 values and of codes alike.
#pragma once

#include <cstdint>
#include <cstring>
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

// What 2:4 stores of a row's 32 inputs: two values of each four, and where they were, two bits each.
template <class Element>
struct Halved {
  Element values[16];
  uint32_t positions;
};

// False if four neighbours hold more than two values.
template <class Element>
bool halve(const Element* inputs, Halved<Element>& out) {
  out.positions = 0;
  for (int group = 0; group < 8; ++group) {
    int where[2];
    if (!find_two(inputs + group * 4, where)) return false;
    for (int i = 0; i < 2; ++i) {
      out.values[2 * group + i] = inputs[group * 4 + where[i]];
      out.positions |= static_cast<uint32_t>(where[i]) << (4 * group + 2 * i);
    }
  }
  return true;
}

// Stores the values in the places of `inputs` that they were taken from; false if positions do not ascend.
template <class Element>
bool restore(const Halved<Element>& halved, Element* inputs) {
  for (int group = 0; group < 8; ++group) {
    const uint32_t first = halved.positions >> (4 * group) & 3;
    const uint32_t second = halved.positions >> (4 * group + 2) & 3;
    if (first >= second) return false;
    inputs[group * 4 + first] = halved.values[2 * group];
    inputs[group * 4 + second] = halved.values[2 * group + 1];
  }
  return true;
}

// The lane that has the positions of the groups 4 · half … 4 · half + 3 of four in row `row` and 32 inputs u.
inline int positions_lane(int row, int u, int half) { return row % 8 * 4 + u % 2 * 2 + half; }

// Positions as their two lanes have them; `at(half)` says where in the tile those of a half lie.
template <class At>
void store_positions(uint8_t* out, uint32_t positions, const At& at) {
  for (int half = 0; half < 2; ++half) {
    const auto part = static_cast<uint16_t>(positions >> (16 * half));
    std::memcpy(out + at(half), &part, 2);
  }
}
template <class At>
uint32_t load_positions(const uint8_t* data, const At& at) {
  uint16_t parts[2];
  for (int half = 0; half < 2; ++half) std::memcpy(&parts[half], data + at(half), 2);
  return parts[0] | static_cast<uint32_t>(parts[1]) << 16;
}

}  // namespace espalier::cuda
