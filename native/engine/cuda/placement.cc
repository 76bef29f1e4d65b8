#include "engine/cuda/placement.h"

#include <cstdio>

#include "engine/cuda/forward.h"
#include "engine/cuda/upload.h"

namespace espalier::cuda {
namespace {

// A step that there must be room for beside the weights: as many rows as generation puts into one.
constexpr int kStepRows = 512;
// What else must stay free: for graphs of steps, for the kernels and for the sums of keys that are shared out.
constexpr int64_t kSpareBytes = int64_t{256} << 20;

std::string gigabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f GB", bytes / 1e9);
  return text;
}

Result<int64_t> free_bytes() {
  size_t free = 0;
  size_t total = 0;
  ESPALIER_CUDA_TRY(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

// Places the parts of a model in the order in which steps come to them: part 0 is the embedding, part i layer i − 1,
// the last one the head.
class Placement {
 public:
  Placement(ThreadPool& pool, const ModelSpec& spec, const EngineOptions& options, std::span<const int> devices)
      : pool_(pool), spec_(spec), options_(options), devices_(devices) {}

  int64_t layers() const { return static_cast<int64_t>(spec_.layers.size()); }

  // Puts the next part where the last one is, or on the next device.
  Status place(int64_t part) {
    if (stages_.empty()) ESPALIER_TRY(open_next(part));
    for (;;) {
      Model& model = stages_.back().model;
      Status placed = try_here(part, model);
      if (placed.is_ok() || placed.code() != Code::kOutOfMemory) return placed;
      drop(part, model);
      why_ = placed.message();
      ESPALIER_TRY(open_next(part));
    }
  }

  std::vector<StageModel> take() {
    std::erase_if(stages_, [](const StageModel& stage) {
      return !stage.model.embeds() && stage.model.layers.empty() && !stage.model.has_head();
    });
    return std::move(stages_);
  }

 private:
  Status open_next(int64_t part) {
    if (!stages_.empty()) {
      const Result<int64_t> left = free_bytes();
      if (!left.is_ok()) return left.status();
      used_ += free_ - left.value();
    }
    while (next_ < devices_.size()) {
      Status opened = open(devices_[next_++]);
      if (opened.code() != Code::kOutOfMemory) return opened;
      why_ = opened.message();
    }
    return too_little(part);
  }

  Status open(int device) {
    ESPALIER_CUDA_TRY(cudaSetDevice(device));
    const Result<int64_t> free = free_bytes();
    if (!free.is_ok()) return free.status();
    Result<Model> model = begin_model(spec_, options_);
    if (!model.is_ok()) return model.status();
    free_ = free.value();
    all_free_ += free_;
    stages_.push_back({device, std::move(model.value())});
    return Status::ok();
  }

  Status upload(int64_t part, Model& model) {
    if (part == 0) return upload_embedding(pool_, spec_, model.embedding);
    if (part > layers()) return upload_head(pool_, spec_, options_, model);
    return upload_layer(pool_, spec_.layers[static_cast<size_t>(part - 1)], options_, model.layers.emplace_back());
  }

  Status try_here(int64_t part, Model& model) {
    ESPALIER_TRY(upload(part, model));
    return check_room(model);
  }

  void drop(int64_t part, Model& model) {
    if (part == 0) {
      model.embedding = {};
    } else if (part > layers()) {
      model.final_norm = {};
      model.head = {};
    } else {
      model.layers.pop_back();
    }
  }

  static Status check_room(const Model& model) {
    const int64_t needed = Forward(model, true).scratch_bytes(kStepRows, 1) + kSpareBytes;
    const Result<int64_t> free = free_bytes();
    if (!free.is_ok()) return free.status();
    if (free.value() >= needed) return Status::ok();
    return {Code::kOutOfMemory, "a step needs " + gigabytes(static_cast<double>(needed)) + " beside the weights, " +
                                    gigabytes(static_cast<double>(free.value())) + " would be left"};
  }

  // All devices are full, and the part is nowhere.
  Status too_little(int64_t part) const {
    std::string names;
    for (const int device : devices_) names += (names.empty() ? "GPU " : ", ") + std::to_string(device);
    const int64_t done = std::max<int64_t>(part - 1, 0);
    std::string text = "not enough memory on " + names +
                       " for this model: " + gigabytes(static_cast<double>(all_free_)) + " were free, and " +
                       std::to_string(done) + " of " + std::to_string(layers()) +
                       " layers fit, with their part of the KV cache";
    if (done > 0) {
      const double all = static_cast<double>(used_) / static_cast<double>(done) * static_cast<double>(layers());
      text += "; all would take about " + gigabytes(all);
    }
    return {Code::kOutOfMemory, text + " (" + why_ + "); use more GPUs, a smaller KV cache (kvTokens) or a bf16 one"};
  }

  ThreadPool& pool_;
  const ModelSpec& spec_;
  const EngineOptions& options_;
  std::span<const int> devices_;
  std::vector<StageModel> stages_;
  size_t next_ = 0;       // of the devices
  std::string why_;       // the last part did not fit the last device
  int64_t free_ = 0;      // bytes on the last device before it got anything
  int64_t all_free_ = 0;  // on all so far
  int64_t used_ = 0;      // on those that are full
};

}  // namespace

Result<std::vector<StageModel>> place_model(ThreadPool& pool, const ModelSpec& spec, const EngineOptions& options,
                                            std::span<const int> devices, const LoadProgress& progress,
                                            const std::atomic<bool>* cancel) {
  Placement placement(pool, spec, options, devices);
  for (int64_t part = 0; part <= placement.layers() + 1; ++part) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return Status(Code::kAborted, "stopped");
    ESPALIER_TRY(placement.place(part));
    if (progress && part > 0 && part <= placement.layers()) progress(part, placement.layers());
  }
  return placement.take();
}

}  // namespace espalier::cuda
