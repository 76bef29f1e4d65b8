#include "prune/cuda/layer_runner.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/activations.h"
#include "kernels/cuda/device.h"
#include "prune/cuda/device_expert_survey.h"
#include "prune/cuda/device_layer.h"
#include "prune/cuda/device_masks.h"
#include "prune/cuda/device_statistics.h"
#include "prune/cuda/expert_products.h"
#include "prune/cuda/layer_attention.h"

namespace espalier::cuda {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));

class CudaLayerRunner final : public LayerRunner {
 public:
  CudaLayerRunner(int device, const RunnableLayer& layer, Stream stream)
      : device_(device),
        layer_(layer),
        stream_(std::move(stream)),
        uploader_(stream_.get()),
        products_(stream_.get()),
        attention_(layer, weights_, stream_.get()),
        experts_(stream_.get()),
        masks_(device, layer.pool, stream_.get()) {}

  Status load() { return uploader_.attention(layer_, weights_); }

  Result<float*> states(int64_t rows) override {
    ESPALIER_CUDA_TRY(cudaSetDevice(device_));
    ESPALIER_TRY(states_.ensure(rows * layer_.hidden * kFloatBytes));
    return states_.as<float>();
  }

  Result<std::unique_ptr<GatheredStatistics>> collect(const StatisticsRequest& request) override {
    ESPALIER_CUDA_TRY(cudaSetDevice(device_));
    Result<std::unique_ptr<DeviceStatistics>> made = DeviceStatistics::create(
        device_, layer_.pool, stream_.get(), layer_.layer.feed_forward(), layer_.hidden, request);
    if (!made.is_ok()) return made.status();
    return std::unique_ptr<GatheredStatistics>(std::move(made.value()));
  }

  Result<std::unique_ptr<LayerSurvey>> survey(const SurveyOptions& options) override {
    ESPALIER_CUDA_TRY(cudaSetDevice(device_));
    return DeviceExpertSurvey::create(device_, layer_.pool, stream_.get(), layer_.layer.feed_forward(), layer_.hidden,
                                      options);
  }

  Status forward(const Batch& batch, float* states, const Watchers& watchers) override {
    ESPALIER_CUDA_TRY(cudaSetDevice(device_));
    const Status ran = run(batch, states, watchers);
    const Status ended = stream_.wait();
    return ran.is_ok() ? ended : ran;
  }

  Status prepare() override {
    ESPALIER_CUDA_TRY(cudaSetDevice(device_));
    Status uploaded = upload();
    if (uploaded.code() != Code::kOutOfMemory) return uploaded;
    // The layer that runs meanwhile will have left when this one is to run.
    ESPALIER_TRY(stream_.wait());
    weights_.feed_forward.clear();
    return Status::ok();
  }

  MatrixMasks* masks() override { return &masks_; }

  void layer_changed() override { is_current_ = false; }

 private:
  // What the kernels of a part read of who goes where, beside the same on the host.
  struct Slots {
    Dispatch host;
    int terms = 1;  // of a token
    std::vector<GemmGroup> groups;
  };

  // The experts as they are now.
  Status upload() {
    if (is_current_) return Status::ok();
    ESPALIER_TRY(uploader_.feed_forward(layer_, weights_));
    is_current_ = true;
    return Status::ok();
  }

  Status run(const Batch& batch, float* states, const Watchers& watchers) {
    ESPALIER_TRY(upload());
    const int64_t rows = batch.rows;
    const int64_t bytes = rows * layer_.hidden * kFloatBytes;
    ESPALIER_TRY(hidden_.ensure(bytes));
    ESPALIER_CUDA_TRY(
        cudaMemcpyAsync(hidden_.data(), states, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_.get()));
    ESPALIER_TRY(attention_.run(batch, hidden_.as<float>()));
    for (size_t p = 0; p < weights_.feed_forward.size(); ++p) {
      ESPALIER_TRY(feed_forward(static_cast<int>(p), rows, watchers));
    }
    return to_status(
        cudaMemcpyAsync(states, hidden_.data(), static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_.get()),
        "cudaMemcpyAsync");
  }

  template <class T>
  Status send(const std::vector<T>& list, DeviceMemory& to) {
    return send_list(list, to, stream_.get());
  }

  // A float [rows][width] of the device on the host.
  Status fetch(const DeviceMemory& from, int64_t rows, int64_t width, std::vector<float>& to) {
    to.resize(static_cast<size_t>(rows * width));
    ESPALIER_CUDA_TRY(
        cudaMemcpyAsync(to.data(), from.data(), to.size() * sizeof(float), cudaMemcpyDeviceToHost, stream_.get()));
    return stream_.wait();
  }

  // Who goes where: the product of the router on the device, the choice on the host.
  Result<Slots> choose(int part, int64_t rows, const float* x, Observer* observer) {
    const FeedForwardPart& from = layer_.layer.feed_forward()[static_cast<size_t>(part)];
    const DeviceMatrix& router = weights_.feed_forward[static_cast<size_t>(part)].router;
    std::vector<float> logits;
    if (router.rows > 0) {
      ESPALIER_TRY(products_.multiply(router, attention_.input(), rows, logits_));
      ESPALIER_TRY(fetch(logits_, rows, router.rows, logits));
    }
    Slots slots;
    if (from.is_routed()) {
      slots.host = from.choose({layer_.pool, cpu_kernels()}, x, logits.data(), rows, layer_.hidden, observer, part);
      slots.terms = from.routing().top_k;
    } else {
      // A dense part is one expert that every row goes to; an output gate scores by sigmoid.
      const std::vector<int32_t> chosen(static_cast<size_t>(rows), 0);
      std::vector<float> gates(static_cast<size_t>(rows), 1.0f);
      for (size_t t = 0; t < logits.size(); ++t) gates[t] = 1.0f / (1.0f + std::exp(-logits[t]));
      slots.host = dispatch(chosen.data(), gates.data(), rows, 1, {0}, 1);
    }
    for (size_t e = 0; e + 1 < slots.host.first_slot.size(); ++e) {
      slots.groups.push_back({.weights = nullptr,
                              .first_row = static_cast<int32_t>(slots.host.first_slot[e]),
                              .rows = static_cast<int32_t>(slots.host.count(static_cast<int64_t>(e)))});
    }
    return slots;
  }

  // hidden += part(input).
  Status feed_forward(int part, int64_t rows, const Watchers& watchers) {
    const DevicePart& weights = weights_.feed_forward[static_cast<size_t>(part)];
    const bool is_routed = layer_.layer.feed_forward()[static_cast<size_t>(part)].is_routed();
    // Both are of this runner.
    auto* statistics = is_routed ? static_cast<DeviceStatistics*>(watchers.statistics) : nullptr;
    auto* survey = is_routed ? static_cast<DeviceExpertSurvey*>(watchers.survey) : nullptr;
    Observer* observer = is_routed ? watchers.observer : nullptr;
    if (observer != nullptr) ESPALIER_TRY(fetch(attention_.input_floats(), rows, layer_.hidden, host_input_));
    Result<Slots> chosen = choose(part, rows, host_input_.data(), survey != nullptr ? survey : observer);
    if (!chosen.is_ok()) return chosen.status();
    Slots& slots = chosen.value();
    if (survey != nullptr && survey->wants_all()) {
      ESPALIER_TRY(show_all(part, rows, std::max<int64_t>(1, slots.host.slots() / weights.count()), *survey));
    }
    // Gates in the order of the tokens' slots.
    std::vector<float> gates(slots.host.slots_of.size(), 0.0f);
    for (size_t i = 0; i < gates.size(); ++i) {
      const int32_t slot = slots.host.slots_of[i];
      if (slot >= 0) gates[i] = slots.host.gate[static_cast<size_t>(slot)];
    }
    ESPALIER_TRY(send(slots.host.token, tokens_));
    ESPALIER_TRY(send(slots.host.gate, slot_gates_));
    ESPALIER_TRY(send(slots.host.slots_of, slots_of_));
    ESPALIER_TRY(send(gates, gates_));
    ESPALIER_TRY(experts_.run(weights, slots.groups, attention_.input(), tokens_.as<int32_t>(), slots.host.slots()));
    if (statistics != nullptr) {
      ESPALIER_TRY(statistics->add(part, {.groups = experts_.groups(),
                                          .on_host = &slots.groups,
                                          .input = attention_.input_floats().as<float>(),
                                          .tokens = tokens_.as<int32_t>(),
                                          .gates = slot_gates_.as<float>(),
                                          .activation = experts_.activation().as<float>()}));
    }
    if (survey != nullptr) {
      ESPALIER_TRY(survey->add_routed(part, {.groups = experts_.groups(),
                                             .on_host = &slots.groups,
                                             .gates = slots.host.gate.data(),
                                             .outputs = experts_.output().as<float>()}));
    }
    if (observer != nullptr) ESPALIER_TRY(show(part, slots, weights.width, *observer));
    return add_and_norm({.rows = static_cast<int>(rows),
                         .width = static_cast<int>(layer_.hidden),
                         .hidden = hidden_.as<float>(),
                         .source = experts_.output().as<float>(),
                         .slots = slots_of_.as<int32_t>(),
                         .gates = gates_.as<float>(),
                         .terms = slots.terms,
                         .out = {}},
                        stream_.get());
  }

  // Every expert on every token of the batch, `together` tokens at a time.
  Status show_all(int part, int64_t rows, int64_t together, DeviceExpertSurvey& survey) {
    const DevicePart& weights = weights_.feed_forward[static_cast<size_t>(part)];
    for (int64_t first = 0; first < rows; first += together) {
      const auto count = static_cast<int32_t>(std::min(together, rows - first));
      std::vector<GemmGroup> groups;
      std::vector<int32_t> tokens;
      for (int64_t e = 0; e < weights.count(); ++e) {
        groups.push_back({.weights = nullptr, .first_row = static_cast<int32_t>(tokens.size()), .rows = count});
        for (int32_t t = 0; t < count; ++t) tokens.push_back(static_cast<int32_t>(first) + t);
      }
      ESPALIER_TRY(send(tokens, tokens_));
      ESPALIER_TRY(experts_.run(weights, groups, attention_.input(), tokens_.as<int32_t>(),
                                static_cast<int64_t>(tokens.size())));
      ESPALIER_TRY(survey.add_all(
          part, {.groups = experts_.groups(), .on_host = &groups, .outputs = experts_.output().as<float>()}));
    }
    survey.end_batch(part);
    return Status::ok();
  }

  // An observer of the host sees each expert.
  Status show(int part, const Slots& slots, int64_t stride, Observer& observer) {
    std::vector<float> outputs, activations, own_inputs, own_activations;
    ESPALIER_TRY(fetch(experts_.output(), slots.host.slots(), layer_.hidden, outputs));
    ESPALIER_TRY(fetch(experts_.activation(), slots.host.slots(), stride, activations));
    const std::vector<Mlp>& experts = layer_.layer.feed_forward()[static_cast<size_t>(part)].experts();
    for (size_t e = 0; e < experts.size(); ++e) {
      const int64_t first = slots.groups[e].first_row;
      const int64_t rows = slots.groups[e].rows;
      const int64_t width = experts[e].width();
      own_inputs.resize(static_cast<size_t>(rows * layer_.hidden));
      own_activations.resize(static_cast<size_t>(rows * width));
      layer_.pool.parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t token = slots.host.token[static_cast<size_t>(first + r)];
          std::copy_n(host_input_.data() + token * layer_.hidden, layer_.hidden, own_inputs.data() + r * layer_.hidden);
          std::copy_n(activations.data() + (first + r) * stride, width, own_activations.data() + r * width);
        }
      });
      observer.on_expert({.part = part,
                          .expert = static_cast<int>(e),
                          .rows = rows,
                          .hidden = layer_.hidden,
                          .width = width,
                          .tokens = slots.host.token.data() + first,
                          .input = own_inputs.data(),
                          .gates = slots.host.gate.data() + first,
                          .activation = own_activations.data(),
                          .output = outputs.data() + first * layer_.hidden});
    }
    return Status::ok();
  }

  int device_;
  RunnableLayer layer_;
  Stream stream_;
  DeviceLayer weights_;
  bool is_current_ = false;  // the feed-forward of weights_
  LayerUploader uploader_;
  LayerProducts products_;
  LayerAttention attention_;
  ExpertProducts experts_;
  DeviceMasks masks_;
  PinnedMemory states_;
  DeviceMemory hidden_;
  DeviceMemory logits_, tokens_, slot_gates_, slots_of_, gates_;
  std::vector<float> host_input_;
};

}  // namespace

Result<std::unique_ptr<LayerRunner>> make_layer_runner(int device, const RunnableLayer& layer) {
  ESPALIER_TRY(check_device(device));
  ESPALIER_CUDA_TRY(cudaSetDevice(device));
  Result<Stream> stream = Stream::create();
  if (!stream.is_ok()) return stream.status();
  auto runner = std::make_unique<CudaLayerRunner>(device, layer, std::move(stream.value()));
  ESPALIER_TRY(runner->load());
  return std::unique_ptr<LayerRunner>(std::move(runner));
}

}  // namespace espalier::cuda
