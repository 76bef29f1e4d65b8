#include "kernels/cpu/tile_peak.h"

#include <algorithm>
#include <chrono>

#include "core/cpu_features.h"
#if defined(__x86_64__)
#include "kernels/cpu/amx_tiles.h"
#endif

namespace espalier {

double tile_peak(ThreadPool& pool) {
#if defined(__x86_64__)
  if (cpu_features().best < Isa::kAmx) return 0;
  constexpr int kRounds = 7;
  constexpr int64_t kLoops = 200'000;
  constexpr double kOperations = 4.0 * 2 * 16 * 16 * 32;
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    pool.parallel_for(pool.size(), 1, [](int64_t, int64_t) {
      const TileUnit unit;
      // Numbers of all mantissas between 1 and 2, as weights have: zeros would draw less power and run faster.
      alignas(64) uint16_t numbers[kTileBytes / 2];
      for (int i = 0; i < kTileBytes / 2; ++i) numbers[i] = static_cast<uint16_t>(0x3f80 + i * 37 % 128);
      tile_load<4>(numbers, 64);
      tile_load<5>(numbers, 64);
      tile_load<6>(numbers, 64);
      tile_load<7>(numbers, 64);
      tile_zero<0>();
      tile_zero<1>();
      tile_zero<2>();
      tile_zero<3>();
      for (int64_t i = 0; i < kLoops; ++i) {
        tile_dot_bf16<0, 4, 6>();
        tile_dot_bf16<1, 4, 7>();
        tile_dot_bf16<2, 5, 6>();
        tile_dot_bf16<3, 5, 7>();
      }
    });
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(pool.size() * kLoops) * kOperations / time.count());
  }
  return best;
#else
  static_cast<void>(pool);
  return 0;
#endif
}

}  // namespace espalier
