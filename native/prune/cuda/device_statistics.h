// What the experts of a layer read, summed in device memory while the layer runs there.
#pragma once

#include <optional>
#include <vector>

#include "kernels/cuda/calibration.h"
#include "kernels/cuda/memory.h"
#include "prune/cuda/device_walk.h"
#include "prune/layer_runner.h"

namespace espalier::cuda {

// What the experts of one part read in a batch, in the slots of a Dispatch. Pointers are to device memory.
struct ExpertRows {
  const GemmGroup* groups = nullptr;                // one for each expert
  const std::vector<GemmGroup>* on_host = nullptr;  // the same
  const float* input = nullptr;                     // [tokens][hidden]
  const int32_t* tokens = nullptr;                  // the row of input that each slot is
  const float* gates = nullptr;                     // of each slot
  const float* activation = nullptr;                // [slots][width of the widest expert]
};

// Squared lengths have the bits that the CPU would give them for the same inputs. Gram matrices are summed by gemm(),
// both factors of two parts: each batch adds at most (2⁻¹⁵ + rows / 8 · 2⁻²³) · Σ g²·|x_i·x_j| of its own rows to
// the error, and a rounding to float32.
class DeviceStatistics final : public GatheredStatistics {
 public:
  // All must outlive it; it works on the current device. kOutOfMemory.
  static Result<std::unique_ptr<DeviceStatistics>> create(int device, ThreadPool& pool, cudaStream_t stream,
                                                          std::vector<FeedForwardPart>& parts, int64_t hidden,
                                                          const StatisticsRequest& request);

  // Starts to add a batch.
  Status add(int part, const ExpertRows& rows);

  Status finish() override;
  const ExpertStatistics& lengths(int part, int expert) const override { return lengths_[number(part, expert)]; }
  const SiteStatistics* pooled(int part) override;
  // SparseGPT without rounding, in blocks of up to kWalked columns.
  bool prepares(const MethodPlan& plan) const override;
  Result<PreparedSite> prepare(const MethodPlan& plan, const MatrixId& id) override;
  Result<ExpertStatistics> take(int part, int expert) override;

 private:
  // One of the two sites of the experts of a part.
  struct Site {
    int64_t width = 0;                // of the widest expert
    DeviceMemory squares;             // double [experts][width]
    std::vector<DeviceMemory> grams;  // float [width][width] of each expert, or none
  };
  struct Part {
    int64_t first_expert = 0;
    std::vector<int64_t> widths;  // of the experts
    std::vector<int64_t> tokens;  // of the experts, so far
    Site input, activation;
    std::optional<SiteStatistics> pooled;
    DeviceMemory pooled_gram;  // the same, float [width of input][the same]
  };

  DeviceStatistics(int device, ThreadPool& pool, cudaStream_t stream, const StatisticsRequest& request)
      : device_(device),
        pool_(pool),
        stream_(stream),
        request_(request),
        walk_(std::make_shared<DeviceWalk>(device, pool, stream)) {}
  size_t number(int part, int expert) const {
    return static_cast<size_t>(parts_[static_cast<size_t>(part)].first_expert + expert);
  }
  Status allocate(Site& site, int64_t width, size_t experts) const;
  Status add(Site& site, const ExpertRows& rows, const float* x, const int32_t* from);
  Status add_gram(const Site& site, size_t expert, const GemmGroup& rows, const float* x, const int32_t* from,
                  const float* gates);
  // Of columns [0, width) of a site of the given width.
  Result<SiteStatistics> fetch(const DeviceMemory* gram, int64_t site_width, int64_t width, int64_t tokens,
                               std::vector<double> squares) const;
  Status pool_inputs(Part& part);

  int device_;
  ThreadPool& pool_;
  cudaStream_t stream_;
  StatisticsRequest request_;
  std::vector<Part> parts_;
  std::vector<ExpertStatistics> lengths_;  // of every expert, when finished
  DeviceMemory transposed_, group_;
  std::shared_ptr<DeviceWalk> walk_;
};

}  // namespace espalier::cuda
