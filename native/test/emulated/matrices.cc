#include "matrices.h"

namespace emulated {
namespace {

struct MatrixRow {
  uint32_t address;
  uint32_t words[4];
};

struct Product {
  float* c;
  uint32_t a[4];
  uint32_t b[4];
  uint32_t positions;
};

// c += a · b, where column n of b is what b(k, n) says.
template <class B>
void add_product(Product* const* lanes, const Rows16& a, const B& b) {
  for (int l = 0; l < kLanes; ++l) {
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + i / 2 * 8;
      const int col = l % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < a.k; ++k) sum += a.at[row][k] * b(k, col);
      lanes[l]->c[i] += sum;
    }
  }
}

// Element k of column n of a B operand: lane 4n + k % 8 / 2 has it in register k / 8.
float b_element(Product* const* lanes, int k, int n) {
  return from_bf16(lanes[4 * n + k % 8 / 2]->b[k / 8] >> (k % 2 * 16));
}

}  // namespace

uint4 load_matrices(uint32_t row, bool turned) {
  MatrixRow mine{row, {}};
  together(~0u, mine, turned ? "ldmatrix.trans" : "ldmatrix", [&](MatrixRow* const* lanes, uint32_t) {
    for (int m = 0; m < 4; ++m) {
      uint16_t at[8][8];
      for (int r = 0; r < 8; ++r) std::memcpy(at[r], shared_at(lanes[8 * m + r]->address, 16, 16), 16);
      for (int l = 0; l < kLanes; ++l) {
        const int g = l / 4;
        const int t = l % 4 * 2;
        const uint32_t first = turned ? at[t][g] : at[g][t];
        const uint32_t second = turned ? at[t + 1][g] : at[g][t + 1];
        lanes[l]->words[m] = first | second << 16;
      }
    }
  });
  return {mine.words[0], mine.words[1], mine.words[2], mine.words[3]};
}

void store_matrices_turned(uint32_t to, const uint32_t (&from)[4]) {
  MatrixRow mine{to, {from[0], from[1], from[2], from[3]}};
  together(~0u, mine, "stmatrix.trans", [](MatrixRow* const* lanes, uint32_t) {
    for (int m = 0; m < 4; ++m) {
      for (int l = 0; l < kLanes; ++l) {
        for (int i = 0; i < 2; ++i) {
          const auto element = static_cast<uint16_t>(lanes[l]->words[m] >> (16 * i));
          uint8_t* const row = shared_at(lanes[8 * m + l % 4 * 2 + i]->address, 16, 16);
          std::memcpy(row + l / 4 * 2, &element, 2);
        }
      }
    }
  });
}

Rows16 rows_of(const uint32_t (&a)[kLanes][4]) {
  Rows16 rows;
  rows.k = 16;
  for (int l = 0; l < kLanes; ++l) {
    for (int i = 0; i < 8; ++i) {
      const int word = i / 2;
      rows.at[l / 4 + word % 2 * 8][word / 2 * 8 + l % 4 * 2 + i % 2] = from_bf16(a[l][word] >> (i % 2 * 16));
    }
  }
  return rows;
}

Rows16 sparse_rows_of(const uint32_t (&a)[kLanes][4], const uint32_t (&positions)[kLanes], int selector) {
  const Rows16 stored = rows_of(a);
  Rows16 rows{};
  rows.k = 32;
  for (int row = 0; row < 16; ++row) {
    for (int v = 0; v < 16; ++v) {
      // Eight stored values of a row, four groups, are described by half of a word.
      const uint32_t word = positions[row % 8 * 4 + 2 * selector + v / 8];
      const uint32_t place = word >> (row / 8 * 16 + v % 8 * 2) & 3;
      if (v % 2 == 1) {
        const uint32_t before = word >> (row / 8 * 16 + v % 8 * 2 - 2) & 3;
        if (before >= place) fault("positions of a 2:4 operand that do not ascend");
      }
      rows.at[row][v / 2 * 4 + static_cast<int>(place)] = stored.at[row][v];
    }
  }
  return rows;
}

void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Product mine{c, {a[0], a[1], a[2], a[3]}, {b0, b1}, 0};
  together(~0u, mine, "mma", [](Product* const* lanes, uint32_t) {
    uint32_t words[kLanes][4];
    for (int l = 0; l < kLanes; ++l) std::memcpy(words[l], lanes[l]->a, sizeof(words[l]));
    add_product(lanes, rows_of(words), [&](int k, int n) { return b_element(lanes, k, n); });
  });
}

void mma_sparse_m16n8k32(float (&c)[4], const uint4& a, const uint4& b, uint32_t positions, int selector) {
  Product mine{c, {a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}, positions};
  together(~0u, mine, selector == 0 ? "mma.sp 0" : "mma.sp 1", [selector](Product* const* lanes, uint32_t) {
    uint32_t words[kLanes][4];
    uint32_t where[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      std::memcpy(words[l], lanes[l]->a, sizeof(words[l]));
      where[l] = lanes[l]->positions;
    }
    add_product(lanes, sparse_rows_of(words, where, selector), [&](int k, int n) { return b_element(lanes, k, n); });
  });
}

void mma_m16n8k8(double (&c)[4], const double (&a)[4], double b0, double b1) {
  struct Lane {
    double* c;
    const double* a;
    double b[2];
  };
  Lane mine{c, a, {b0, b1}};
  together(~0u, mine, "mma.f64", [](Lane* const* lanes, uint32_t) {
    for (int l = 0; l < kLanes; ++l) {
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + i / 2 * 8;
        const int col = l % 4 * 2 + i % 2;
        double sum = 0;
        for (int k = 0; k < 8; ++k) {
          sum += lanes[row % 8 * 4 + k % 4]->a[row / 8 + k / 4 * 2] * lanes[4 * col + k % 4]->b[k / 4];
        }
        lanes[l]->c[i] += sum;
      }
    }
  });
}

}  // namespace emulated
