#include "warpgroup.h"

#include <array>

namespace emulated {
namespace {

struct Operands {
  float* sums;
  uint32_t a[4];
  uint32_t positions;
  uint64_t of_a;
  uint64_t of_b;
};

// Rows of `k` bf16 numbers each, as a descriptor says.
std::vector<float> read_rows(Block& block, uint64_t descriptor, int rows, int k) {
  const int swizzle = static_cast<int>(descriptor >> 62);  // 1, 2, 3: rows of 128, 64, 32 bytes
  if (swizzle == 0) fault("an operand in shared memory that is not swizzled");
  const uint32_t row_bytes = 256u >> swizzle;
  const uint32_t begin = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t eight_rows = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t turned = (row_bytes / 16 - 1) << 4;
  std::vector<float> out(static_cast<size_t>(rows) * static_cast<size_t>(k));
  float* at = out.data();
  for (int row = 0; row < rows; ++row) {
    const uint32_t first =
        begin + static_cast<uint32_t>(row / 8) * eight_rows + static_cast<uint32_t>(row % 8) * row_bytes;
    for (int i = 0; i < k; i += 8) {
      const uint32_t address = first + static_cast<uint32_t>(i) * 2;
      uint16_t bits[8];
      std::memcpy(bits, shared_at(block, address ^ (address >> 3 & turned), 16, 16), 16);
      for (const uint16_t one : bits) *at++ = from_bf16(one);
    }
  }
  return out;
}

// The warp's sums += a · b; b is read where it lies.
void add(Block& block, const std::array<float*, kLanes>& sums, int tokens, const Rows16& a, uint64_t descriptor) {
  const std::vector<float> b = read_rows(block, descriptor, tokens, a.k);
  // Turned, so that the innermost loop goes through rows.
  float columns[32][16];
  for (int k = 0; k < a.k; ++k) {
    for (int row = 0; row < 16; ++row) columns[k][row] = a.at[row][k];
  }
  for (int token = 0; token < tokens; ++token) {
    const float* const inputs = b.data() + token * a.k;
    float of_rows[16] = {};
    for (int k = 0; k < a.k; ++k) {
      for (int row = 0; row < 16; ++row) of_rows[row] += columns[k][row] * inputs[k];
    }
    for (int row = 0; row < 16; ++row) {
      sums[static_cast<size_t>(row % 8 * 4 + token % 8 / 2)][token / 8 * 4 + token % 2 + row / 8 * 2] += of_rows[row];
    }
  }
}

template <class MakeRows>
void start(Operands& mine, const char* name, int tokens, const MakeRows& make_rows) {
  together(~0u, mine, name, [&](Operands* const* lanes, uint32_t) {
    std::array<float*, kLanes> sums;
    for (size_t l = 0; l < kLanes; ++l) {
      sums[l] = lanes[l]->sums;
      if (lanes[l]->of_b != lanes[0]->of_b) fault("lanes that do not agree where an operand is");
    }
    Block& own = block();
    do_in_group(current().warp->products, [&own, sums, tokens, rows = make_rows(lanes), b = lanes[0]->of_b] {
      add(own, sums, tokens, rows(), b);
    });
  });
}

void copy_registers(Operands* const* lanes, uint32_t (&words)[kLanes][4]) {
  for (int l = 0; l < kLanes; ++l) std::memcpy(words[l], lanes[l]->a, sizeof(words[l]));
}

}  // namespace

void warpgroup_product(float* sums, int tokens, const uint32_t (&a)[4], uint64_t b) {
  Operands mine{sums, {a[0], a[1], a[2], a[3]}, 0, 0, b};
  start(mine, "wgmma", tokens, [](Operands* const* lanes) {
    uint32_t words[kLanes][4];
    copy_registers(lanes, words);
    return [rows = rows_of(words)] { return rows; };
  });
}

void warpgroup_product(float* sums, int tokens, uint64_t a, uint64_t b) {
  Operands mine{sums, {}, 0, a, b};
  start(mine, "wgmma of shared memory", tokens, [](Operands* const* lanes) {
    Block& own = block();
    const int warp = static_cast<int>(current().warp - own.warps.data()) % 4;
    return [&own, warp, descriptor = lanes[0]->of_a] {
      const std::vector<float> all = read_rows(own, descriptor, 64, 16);
      Rows16 rows;
      rows.k = 16;
      for (int row = 0; row < 16; ++row) std::memcpy(rows.at[row], all.data() + (warp * 16 + row) * 16, 64);
      return rows;
    };
  });
}

void warpgroup_sparse_product(float* sums, int tokens, const uint4& a, uint32_t positions, int selector, uint64_t b) {
  Operands mine{sums, {a.x, a.y, a.z, a.w}, positions, 0, b};
  start(mine, selector == 0 ? "wgmma.sp 0" : "wgmma.sp 1", tokens, [selector](Operands* const* lanes) {
    uint32_t words[kLanes][4];
    uint32_t where[kLanes];
    copy_registers(lanes, words);
    for (int l = 0; l < kLanes; ++l) where[l] = lanes[l]->positions;
    return [rows = sparse_rows_of(words, where, selector)] { return rows; };
  });
}

void warpgroup_commit() {
  int nothing = 0;
  together(~0u, nothing, "wgmma.commit_group", [](int* const*, uint32_t) { current().warp->products.emplace_back(); });
}

void warpgroup_wait(size_t left) {
  int nothing = 0;
  together(~0u, nothing, "wgmma.wait_group",
           [left](int* const*, uint32_t) { finish_but(current().warp->products, left); });
}

}  // namespace emulated
