// Which instruction sets this processor has, and which of our kernel sets that selects.
#pragma once

#include <string>
#include <vector>

namespace espalier {

enum class Isa { kScalar, kNeon, kAvx2, kAvx512, kAmx };

// The levels of the architecture that this is built for, lowest first; a later one contains those before it.
#if defined(__x86_64__)
inline constexpr Isa kIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAmx};
#elif defined(__aarch64__)
inline constexpr Isa kIsas[] = {Isa::kScalar, Isa::kNeon};
#else
inline constexpr Isa kIsas[] = {Isa::kScalar};
#endif

const char* isa_name(Isa isa);

struct CpuFeatures {
  Isa best = Isa::kScalar;         // the highest level this processor supports
  Isa selected = Isa::kScalar;     // `best`, unless the environment variable ESPALIER_ISA names a lower one
  std::string model;               // as /proc/cpuinfo names it
  std::vector<std::string> flags;  // the extensions that matter to us, present ones only
  std::string note;                // why `selected` is not `best`, or what ESPALIER_ISA asked in vain
};

// Read once a process.
const CpuFeatures& cpu_features();

}  // namespace espalier
