#include "core/cpu_features.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace espalier {
namespace {

std::string model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

#if defined(__x86_64__)
// By CPUID, since not every compiler's __builtin_cpu_supports knows the name. That the system saves the registers is
// what avx2, asked beside it, stands for.
bool has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// The matrix unit: tiles with bf16 and int8 products, where the system lets this process use their registers.
std::pair<bool, bool> has_amx() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & (1u << 24)) == 0) return {false, false};
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return {false, false};
  return {(edx & (1u << 22)) != 0, (edx & (1u << 25)) != 0};
}
#endif

CpuFeatures detect() {
  CpuFeatures features;
  features.model = model_name();
  [[maybe_unused]] const auto flag = [&](const char* name, bool present) {
    if (present) features.flags.emplace_back(name);
    return present;
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const auto all = [](std::initializer_list<bool> present) {
    return std::all_of(present.begin(), present.end(), [](bool one) { return one; });
  };
  const bool avx2 = all({flag("avx2", __builtin_cpu_supports("avx2")), flag("fma", __builtin_cpu_supports("fma")),
                         flag("bmi2", __builtin_cpu_supports("bmi2")), flag("f16c", has_f16c())});
  const bool avx512 =
      all({flag("avx512f", __builtin_cpu_supports("avx512f")), flag("avx512bw", __builtin_cpu_supports("avx512bw")),
           flag("avx512vl", __builtin_cpu_supports("avx512vl")), flag("avx512dq", __builtin_cpu_supports("avx512dq")),
           flag("avx512vbmi", __builtin_cpu_supports("avx512vbmi")),
           flag("avx512vbmi2", __builtin_cpu_supports("avx512vbmi2")),
           flag("avx512vnni", __builtin_cpu_supports("avx512vnni")), flag("gfni", __builtin_cpu_supports("gfni"))});
  if (avx2) features.best = avx512 ? Isa::kAvx512 : Isa::kAvx2;
  const auto [amx_bf16, amx_int8] = has_amx();
  if (all({flag("amx_bf16", amx_bf16), flag("amx_int8", amx_int8), avx512})) features.best = Isa::kAmx;
#elif defined(__aarch64__)
  if (flag("asimddp", (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0)) features.best = Isa::kNeon;
#endif
  features.selected = features.best;
  if (const char* wish = std::getenv("ESPALIER_ISA"); wish != nullptr && *wish != '\0') {
    const std::string name(wish);
    bool known = false;
    std::string allowed;
    for (const Isa isa : kIsas) {
      allowed += (allowed.empty() ? "" : ", ") + std::string(isa_name(isa));
      if (name != isa_name(isa)) continue;
      known = true;
      if (isa <= features.best) {
        features.selected = isa;
        if (isa != features.best) features.note = "ESPALIER_ISA=" + name;
      } else {
        features.note = "ESPALIER_ISA=" + name + " is not supported by this processor";
      }
    }
    if (!known) features.note = "ESPALIER_ISA=" + name + " is unknown on this architecture; allowed: " + allowed;
  }
  return features;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return "scalar";
    case Isa::kNeon: return "neon";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAmx: return "amx";
  }
  return "scalar";
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace espalier
