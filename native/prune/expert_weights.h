// The matrices of a layer's routed experts while a run changes them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/spec.h"
#include "prune/merge_experts.h"

namespace espalier {

enum class Role : uint8_t { kGate, kUp, kDown };
inline constexpr std::array kRoles = {Role::kGate, Role::kUp, Role::kDown};

// One of them: a part of the layer's feed-forward, an expert of it, and what the matrix does there.
struct MatrixId {
  int part = 0;
  int expert = 0;
  Role role = Role::kGate;
};

// What the layer started from stays readable beside what it became: recovery compares with it.
class ExpertWeights {
 public:
  // The experts as the checkpoint has them.
  explicit ExpertWeights(const std::vector<FeedForwardPartSpec>& parts);

  int parts() const { return static_cast<int>(slots_.size()); }
  // 0 for a dense part.
  int experts(int part) const { return static_cast<int>(slots_[static_cast<size_t>(part)].size()); }
  // Every matrix, by part, expert, then gate, up, down.
  std::vector<MatrixId> ids() const;
  // Name, element type and shape; the bytes it points to are the checkpoint's.
  const WeightRef& ref(const MatrixId& id) const { return slot(id).ref; }

  // Before weights were pruned, and now; row-major.
  Result<std::vector<float>> dense(const MatrixId& id) const;
  Result<std::vector<float>> current(const MatrixId& id) const;

  // Stores `values` in the element type of the checkpoint and rounds them to what is stored.
  void replace(const MatrixId& id, std::vector<float>& values);

  // As it is now, in the element type of the checkpoint, row-major. Valid until the next replace() of it.
  Result<std::span<const uint8_t>> bytes(const MatrixId& id);

  // Puts other experts in the place of a part's. Expert i takes over old expert from[i] as it is, or becomes merged[i],
  // named after it and rounded to what will be stored; that is then what it started from.
  void restructure(int part, const std::vector<int32_t>& from, std::vector<std::optional<ExpertValues>>& merged);

 private:
  struct Slot {
    WeightRef ref;
    std::vector<uint8_t> start;    // what it started from; empty: as the checkpoint has it
    std::vector<uint8_t> current;  // empty: as it started
  };
  using Expert = std::array<Slot, kRoles.size()>;

  static std::vector<float> decode(const Slot& slot, const std::vector<uint8_t>& bytes);

  Slot& slot(const MatrixId& id) {
    return slots_[static_cast<size_t>(id.part)][static_cast<size_t>(id.expert)][static_cast<size_t>(id.role)];
  }
  const Slot& slot(const MatrixId& id) const { return const_cast<ExpertWeights*>(this)->slot(id); }

  std::vector<std::vector<Expert>> slots_;  // [part][expert][role]
};

}  // namespace espalier
