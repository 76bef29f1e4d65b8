// What the distribution of a matrix's weights looks like, for JavaScript.
#pragma once

#include <napi.h>

#include "prune/moments.h"

namespace espalier::binding {

// Sets zeros, size, kurtosis and kurtosisKept.
void set_moments(Napi::Object object, const WeightMoments& moments);

}  // namespace espalier::binding
