// Norms, biases and lists from a checkpoint to device memory.
#pragma once

#include <utility>
#include <vector>

#include "engine/linear.h"
#include "engine/spec.h"
#include "kernels/cuda/memory.h"

namespace espalier::cuda {

template <class T>
Status upload_list(const std::vector<T>& list, DeviceMemory& out) {
  Result<DeviceMemory> memory = DeviceMemory::copy_of(list.data(), static_cast<int64_t>(list.size() * sizeof(T)));
  if (!memory.is_ok()) return memory.status();
  out = std::move(memory.value());
  return Status::ok();
}

// A norm or bias as floats; nothing where there is none.
inline Status upload_vector(const WeightRef& ref, DeviceMemory& out) {
  if (!ref.present()) return Status::ok();
  const Result<std::vector<float>> floats = load_vector(ref);
  return floats.is_ok() ? upload_list(floats.value(), out) : floats.status();
}

// The biases of queries, keys and values one after the other, zeros for those that are missing; nothing where all are.
inline Status upload_qkv_bias(const AttentionSpec& spec, DeviceMemory& out) {
  if (!spec.q_bias.present() && !spec.k_bias.present() && !spec.v_bias.present()) return Status::ok();
  std::vector<float> all;
  for (const auto& [bias, weight] :
       {std::pair{&spec.q_bias, &spec.q}, std::pair{&spec.k_bias, &spec.k}, std::pair{&spec.v_bias, &spec.v}}) {
    std::vector<float> floats(static_cast<size_t>(weight->rows), 0.0f);
    if (bias->present()) {
      Result<std::vector<float>> loaded = load_vector(*bias);
      if (!loaded.is_ok()) return loaded.status();
      floats = std::move(loaded.value());
    }
    all.insert(all.end(), floats.begin(), floats.end());
  }
  return upload_list(all, out);
}

}  // namespace espalier::cuda
