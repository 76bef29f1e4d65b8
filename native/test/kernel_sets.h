// The kernel sets that this processor can run; names those it cannot.
#pragma once

#include <vector>

#include "kernels/cpu/kernels.h"
#include "test_main.h"

namespace espalier::test {

inline std::vector<const CpuKernels*> kernel_sets() {
  std::vector<const CpuKernels*> sets;
  for (const Isa isa : kIsas) {
    if (const CpuKernels* set = cpu_kernels(isa)) {
      sets.push_back(set);
    } else {
      MESSAGE("not tested, this processor lacks it: " << isa_name(isa));
    }
  }
  return sets;
}

}  // namespace espalier::test
