// JavaScript model descriptions (lib/runtime/native-spec.ts) → engine specs.
#pragma once

#include <napi.h>

#include "engine/inputs.h"
#include "engine/spec.h"
#include "engine/weight_policy.h"
#include "sparse/format.h"

namespace espalier::binding {

// The open files that weights refer to by index.
using Files = std::vector<std::shared_ptr<MappedFile>>;

Files read_files(const Napi::Array& files);
Precision read_precision(const Napi::Value& value);
Activations read_activations(const Napi::Value& value);
// { storage, values, n, m }; a storage of `auto` reads as dense.
Format read_format(const Napi::Value& value);
WeightRef read_weight(const Napi::Value& value, const Files& files);
// All but the bias.
RouterOptions read_routing(const Napi::Object& object);
RopeSpec read_rope(const Napi::Object& object);
LayerSpec read_layer(const Napi::Object& object, const Files& files);
ModelSpec read_model(const Napi::Object& object, const Files& files);

}  // namespace espalier::binding
