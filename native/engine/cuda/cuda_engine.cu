#include "engine/cuda/cuda_engine.h"

#include <algorithm>
#include <mutex>
#include <set>

#include "engine/cuda/forward.h"
#include "engine/cuda/upload.h"
#include "kernels/cuda/device.h"

namespace espalier::cuda {
namespace {

// Rows up to which the chunks of attention run side by side; more fill the GPU by themselves.
constexpr int64_t kMostSplitRows = 64;
// Bytes that what the chunks give may take.
constexpr int64_t kMostPartialBytes = int64_t{256} << 20;

// The lists of a step as they lie in its one buffer of 32-bit integers.
class StepLists {
 public:
  StepLists(const StepRequest& request, const std::vector<int32_t>& answered)
      : request_(request), answered_(answered), rows_(request.batch.rows) {
    for (const Slice& slice : request.batch.slices) blocks_ += static_cast<int64_t>(slice.blocks.size());
  }

  int64_t positions() const { return rows_; }
  int64_t tables() const { return 2 * rows_; }
  int64_t picks() const { return 3 * rows_; }
  int64_t targets() const { return picks() + static_cast<int64_t>(answered_.size()); }
  int64_t blocks() const { return targets() + static_cast<int64_t>(answered_.size()); }
  int64_t size() const { return blocks() + blocks_; }

  void write(int32_t* out) const {
    std::copy(request_.tokens.begin(), request_.tokens.end(), out);
    int32_t table = 0;
    for (const Slice& slice : request_.batch.slices) {
      for (int64_t i = 0; i < slice.count; ++i) {
        out[positions() + slice.first_row + i] = static_cast<int32_t>(slice.position + i);
        out[tables() + slice.first_row + i] = table;
      }
      std::copy(slice.blocks.begin(), slice.blocks.end(), out + blocks() + table);
      table += static_cast<int32_t>(slice.blocks.size());
    }
    std::copy(answered_.begin(), answered_.end(), out + picks());
    std::fill_n(out + targets(), answered_.size(), 0);
    int32_t* target = out + blocks() - request_.scores.size();
    for (const ScoreRequest& score : request_.scores) *target++ = score.target;
  }

 private:
  const StepRequest& request_;
  const std::vector<int32_t>& answered_;
  int64_t rows_;
  int64_t blocks_ = 0;
};

class CudaEngine final : public Engine {
 public:
  CudaEngine(int device, std::shared_ptr<ThreadPool> pool, const StepLimits& limits, Model model, Stream stream)
      : device_(device),
        pool_(std::move(pool)),
        limits_(limits),
        model_(std::move(model)),
        forward_(model_),
        stream_(std::move(stream)) {
    collect_info();
  }
  // A step that failed half-way may have left work on the stream.
  ~CudaEngine() override { cudaStreamSynchronize(stream_.get()); }

  Result<StepResult> step(const StepRequest& request, const std::atomic<bool>* cancel) override {
    ESPALIER_TRY(check_step(request, limits_));
    const std::lock_guard lock(mutex_);
    ESPALIER_CUDA_TRY(cudaSetDevice(device_));
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return Status(Code::kAborted, "stopped");
    StepResult result = empty_result(request, limits_.vocabulary);
    const Status ran = run(request, result);
    if (ran.is_ok()) return result;
    // Nothing of a step that failed may still read the lists of the next.
    cudaStreamSynchronize(stream_.get());
    return ran;
  }

 private:
  Status run(const StepRequest& request, StepResult& result) {
    if (request.batch.rows == 0) return Status::ok();
    const std::vector<int32_t> answered = answered_rows(request);
    const StepLists lists(request, answered);
    const int64_t bytes = lists.size() * static_cast<int64_t>(sizeof(int32_t));
    ESPALIER_TRY(lists_.ensure(bytes));
    ESPALIER_TRY(host_lists_.ensure(bytes));
    lists.write(host_lists_.as<int32_t>());
    const auto rows = static_cast<int>(request.batch.rows);
    const int splits = splits_of(request);
    ESPALIER_TRY(forward_.reserve(rows, splits));
    ESPALIER_CUDA_TRY(cudaMemcpyAsync(lists_.data(), host_lists_.as<void>(), static_cast<size_t>(bytes),
                                      cudaMemcpyHostToDevice, stream_.get()));
    const auto* device = lists_.as<int32_t>();
    ESPALIER_TRY(forward_.run({.places = {.rows = rows,
                                          .positions = device + lists.positions(),
                                          .tables = device + lists.tables(),
                                          .blocks = device + lists.blocks()},
                               .tokens = device,
                               .splits = splits},
                              stream_.get()));
    const auto count = static_cast<int64_t>(answered.size());
    for (int64_t first = 0; first < count; first += kMostLogitRows) {
      const int64_t chunk = std::min<int64_t>(kMostLogitRows, count - first);
      ESPALIER_TRY(answer_chunk(request, first, chunk, device + lists.picks() + first,
                                device + lists.targets() + first, result));
    }
    // Keys and values are there when the step returns, whatever was asked; so are errors.
    return stream_.wait();
  }

  // Answers [first, first + count) of the request's list.
  Status answer_chunk(const StepRequest& request, int64_t first, int64_t count, const int32_t* picks,
                      const int32_t* targets, StepResult& result) {
    const auto first_score = static_cast<int64_t>(request.logits.size() + request.samples.size());
    const int64_t with_logits = std::clamp<int64_t>(first_score - first, 0, count);
    const bool has_scores = with_logits < count;
    ESPALIER_TRY(forward_.run_head(
        {.count = static_cast<int>(count), .rows = picks, .targets = has_scores ? targets : nullptr}, stream_.get()));
    const int64_t logit_bytes = with_logits * limits_.vocabulary * static_cast<int64_t>(sizeof(float));
    ESPALIER_TRY(host_logits_.ensure(logit_bytes));
    ESPALIER_TRY(host_scores_.ensure(kMostLogitRows * static_cast<int64_t>(sizeof(double))));
    if (with_logits > 0) {
      ESPALIER_CUDA_TRY(cudaMemcpyAsync(host_logits_.as<void>(), forward_.logits(), static_cast<size_t>(logit_bytes),
                                        cudaMemcpyDeviceToHost, stream_.get()));
    }
    if (has_scores) {
      ESPALIER_CUDA_TRY(cudaMemcpyAsync(host_scores_.as<void>(), forward_.scores(),
                                        static_cast<size_t>(count) * sizeof(double), cudaMemcpyDeviceToHost,
                                        stream_.get()));
    }
    ESPALIER_TRY(stream_.wait());
    pool_->parallel_for(with_logits, 1, [&](int64_t i, int64_t) {
      float* logits = host_logits_.as<float>() + i * limits_.vocabulary;
      answer(request, static_cast<size_t>(first + i), {logits, static_cast<size_t>(limits_.vocabulary)}, result);
    });
    for (int64_t i = with_logits; i < count; ++i) {
      result.scores[static_cast<size_t>(first + i - first_score)] = host_scores_.as<double>()[i];
    }
    return Status::ok();
  }

  int splits_of(const StepRequest& request) const {
    int64_t longest = 0;
    for (const Slice& slice : request.batch.slices) longest = std::max(longest, slice.position + slice.count);
    const int64_t chunks = (longest + kAttendChunk - 1) / kAttendChunk;
    const int64_t floats = widest(
        model_.layers, [&](const Layer& layer) { return attend_partial_floats(layer.heads, request.batch.rows, chunks); });
    const bool splits = request.batch.rows <= kMostSplitRows && floats * 4 <= kMostPartialBytes;
    return splits ? static_cast<int>(chunks) : 1;
  }

  void collect_info() {
    std::set<std::string> formats;
    const auto add = [&](int64_t bytes, int64_t active) {
      info_.weight_bytes += bytes;
      info_.active_bytes += active;
    };
    add(model_.head.bytes(), model_.head.bytes());
    for (const Layer& layer : model_.layers) {
      const int64_t attention = layer.qkv.bytes() + layer.output.bytes();
      add(attention, attention);
      info_.kv_bytes += layer.keys.bytes() + layer.values.bytes();
      for (const FeedForwardPart& part : layer.feed_forward) {
        const int64_t experts = part.gate_up.bytes() + part.down.bytes();
        add(part.router.memory.bytes(), part.router.memory.bytes());
        add(experts, part.is_routed ? experts * part.routing.top_k / part.experts : experts);
        if (!part.is_routed) continue;
        info_.expert_bytes += experts;
        formats.insert({part.gate_up.format(), part.down.format()});
      }
    }
    info_.formats.assign(formats.begin(), formats.end());
  }

  std::mutex mutex_;
  int device_;
  std::shared_ptr<ThreadPool> pool_;
  StepLimits limits_;
  Model model_;
  Forward forward_;
  Stream stream_;
  DeviceMemory lists_;
  PinnedMemory host_lists_, host_logits_, host_scores_;
};

}  // namespace

Result<std::unique_ptr<Engine>> load_engine(const ModelSpec& spec, const EngineOptions& options,
                                            const LoadProgress& progress, const std::atomic<bool>* cancel) {
  const int device = *options.gpu;
  ESPALIER_TRY(check_device(device));
  ESPALIER_CUDA_TRY(cudaSetDevice(device));
  std::shared_ptr<ThreadPool> pool = ThreadPool::shared(options.threads);
  Result<Model> model = upload(*pool, spec, options, progress, cancel);
  if (!model.is_ok()) return model.status();
  Result<Stream> stream = Stream::create();
  if (!stream.is_ok()) return stream.status();
  // Copies of weights are done before a step begins on a stream of its own.
  ESPALIER_CUDA_TRY(cudaDeviceSynchronize());
  const StepLimits limits{spec.vocabulary_size, spec.max_positions, options.kv_blocks};
  return std::unique_ptr<Engine>(std::make_unique<CudaEngine>(device, std::move(pool), limits,
                                                              std::move(model.value()), std::move(stream.value())));
}

}  // namespace espalier::cuda
