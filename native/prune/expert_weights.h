// The matrices of a layer's routed experts as a run found them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/spec.h"

namespace espalier {

enum class Role : uint8_t { kGate, kUp, kDown };
inline constexpr std::array kRoles = {Role::kGate, Role::kUp, Role::kDown};

// One of them: a part of the layer's feed-forward, an expert of it, and what the matrix does there.
struct MatrixId {
  int part = 0;
  int expert = 0;
  Role role = Role::kGate;

  bool operator==(const MatrixId&) const = default;
};

// `values` in the element type of a checkpoint.
void store_floats(ThreadPool& pool, DType dtype, const std::vector<float>& values, std::vector<uint8_t>& out);
// Rounds them to it.
void round_floats(ThreadPool& pool, DType dtype, std::vector<float>& values);

// An expert's matrix, [?, cols] row-major, with inner channel order[i] in the place of channel i: a row of gate and up,
// a column of down. The expert computes the same where all three are in one order.
std::vector<float> in_channel_order(const std::vector<float>& values, Role role, int64_t cols,
                                    const std::vector<int32_t>& order);

// What the experts were before weights were pruned, which recovery compares with. What they are is what the layer runs.
class ExpertWeights {
 public:
  // An expert's matrices in the element type of the checkpoint, row-major, indexed by Role.
  using Stored = std::array<std::vector<uint8_t>, kRoles.size()>;

  // The experts as the checkpoint has them.
  explicit ExpertWeights(const std::vector<FeedForwardPartSpec>& parts);

  int parts() const { return static_cast<int>(slots_.size()); }
  // 0 for a dense part.
  int experts(int part) const { return static_cast<int>(slots_[static_cast<size_t>(part)].size()); }
  // Every matrix, by part, expert, then gate, up, down.
  std::vector<MatrixId> ids() const;
  // Name, element type and shape; the bytes it points to are the checkpoint's.
  const WeightRef& ref(const MatrixId& id) const {
    return slots_[static_cast<size_t>(id.part)][static_cast<size_t>(id.expert)][static_cast<size_t>(id.role)].ref;
  }

  // Row-major.
  Result<std::vector<float>> dense(const MatrixId& id) const;

  // Puts other experts in the place of a part's. Expert i takes over old expert from[i] as it is, or, where merged[i]
  // is not empty, becomes that, named after it.
  void restructure(int part, const std::vector<int32_t>& from, std::vector<Stored> merged);

 private:
  struct Slot {
    WeightRef ref;
    std::vector<uint8_t> stored;  // empty: as the checkpoint has it
  };
  using Expert = std::array<Slot, kRoles.size()>;

  std::vector<std::vector<Expert>> slots_;  // [part][expert][role]
};

}  // namespace espalier
