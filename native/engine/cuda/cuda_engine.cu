#include <algorithm>
#include <bit>
#include <mutex>
#include <set>

#include "engine/cuda/cuda_engine.h"
#include "engine/cuda/forward.h"
#include "engine/cuda/graphs.h"
#include "engine/cuda/model_engine.h"
#include "engine/cuda/upload.h"
#include "kernels/cuda/device.h"

namespace espalier::cuda {
namespace {

// Rows up to which the keys of each are shared out; more fill the GPU by themselves.
constexpr int64_t kMostSplitRows = 64;

// Rows that a run has on average at least, where rows attend in runs: one row alone leaves most of a block's work
// empty.
constexpr int64_t kLeastRun = 4;

// Rows up to which a step is captured as a graph: those of larger ones run long enough to hide their launches.
constexpr int kMostGraphRows = 64;

// What an answer is made of.
enum class Need { kLogits, kLikeliest, kScore };

Need need_of(const StepRequest& request, size_t index) {
  const size_t first_sample = request.logits.size();
  const size_t first_score = first_sample + request.samples.size();
  if (index < first_sample) return Need::kLogits;
  if (index >= first_score) return request.scores[index - first_score].top > 0 ? Need::kLogits : Need::kScore;
  const SampleRequest& wish = request.samples[index - first_sample];
  const bool is_greedy = wish.options.temperature <= 0 && wish.rules.change_nothing() && !wish.top;
  return is_greedy ? Need::kLikeliest : Need::kLogits;
}

// The lists of a step as they lie in its one buffer of 32-bit integers.
class StepLists {
 public:
  StepLists(const StepRequest& request, const std::vector<int32_t>& answered)
      : request_(request), answered_(answered), rows_(request.batch.rows) {
    for (const Slice& slice : request.batch.slices) {
      blocks_ += static_cast<int64_t>(slice.blocks.size());
      runs_ += (slice.count + kMostRun - 1) / kMostRun;
    }
    if (rows_ <= kMostSplitRows || runs_ * kLeastRun > rows_) runs_ = 0;
  }

  int64_t positions() const { return rows_; }
  int64_t tables() const { return 2 * rows_; }
  int64_t picks() const { return 3 * rows_; }
  int64_t targets() const { return picks() + static_cast<int64_t>(answered_.size()); }
  int64_t blocks() const { return targets() + static_cast<int64_t>(answered_.size()); }
  int64_t run_firsts() const { return blocks() + blocks_; }
  int64_t run_counts() const { return run_firsts() + runs_; }
  int64_t size() const { return run_counts() + runs_; }
  // Runs of rows that attend together, 0 if rows do one by one.
  int64_t runs() const { return runs_; }

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
    if (runs_ > 0) write_runs(out + run_firsts(), out + run_counts());
    std::copy(answered_.begin(), answered_.end(), out + picks());
    std::fill_n(out + targets(), answered_.size(), 0);
    int32_t* target = out + blocks() - request_.scores.size();
    for (const ScoreRequest& score : request_.scores) *target++ = score.target;
  }

 private:
  void write_runs(int32_t* firsts, int32_t* counts) const {
    for (const Slice& slice : request_.batch.slices) {
      for (int64_t done = 0; done < slice.count; done += kMostRun) {
        *firsts++ = static_cast<int32_t>(slice.first_row + done);
        *counts++ = static_cast<int32_t>(std::min<int64_t>(slice.count - done, kMostRun));
      }
    }
  }

  const StepRequest& request_;
  const std::vector<int32_t>& answered_;
  int64_t rows_;
  int64_t blocks_ = 0;
  int64_t runs_ = 0;
};

class CudaEngine final : public Engine {
 public:
  CudaEngine(int device, std::shared_ptr<ThreadPool> pool, const StepLimits& limits, Model model, Stream stream)
      : device_(device),
        pool_(std::move(pool)),
        limits_(limits),
        model_(std::move(model)),
        forward_(model_, has_wide_products(device)),
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
    const auto rows = static_cast<int>(request.batch.rows);
    const Split split = split_of(request);
    ESPALIER_TRY(make_room(rows, split.splits, bytes));
    lists.write(host_lists_.as<int32_t>());
    ESPALIER_CUDA_TRY(cudaMemcpyAsync(lists_.data(), host_lists_.as<void>(), static_cast<size_t>(bytes),
                                      cudaMemcpyHostToDevice, stream_.get()));
    const auto* device = lists_.as<int32_t>();
    const StepRows step{.places = {.rows = rows,
                                   .positions = device + lists.positions(),
                                   .tables = device + lists.tables(),
                                   .blocks = device + lists.blocks()},
                        .tokens = device,
                        .splits = split.splits,
                        .split_chunks = split.chunks,
                        .runs = static_cast<int>(lists.runs()),
                        .run_firsts = device + lists.run_firsts(),
                        .run_counts = device + lists.run_counts()};
    const auto count = static_cast<int>(answered.size());
    Chunk chunk = chunk_of(request, 0, std::min(count, kMostLogitRows));
    const auto head = [&] {
      return forward_.run_head({.count = chunk.count,
                                .rows = device + lists.picks() + chunk.first,
                                .targets = chunk.scores ? device + lists.targets() + chunk.first : nullptr,
                                .wants_likeliest = chunk.likeliest},
                               stream_.get());
    };
    const auto first = [&]() -> Status {
      ESPALIER_TRY(forward_.run(step, stream_.get()));
      return count > 0 ? head() : Status::ok();
    };
    const StepShape shape{rows, count, split.splits * split.chunks, 2 * chunk.scores + chunk.likeliest};
    ESPALIER_TRY(rows <= kMostGraphRows && count <= kMostLogitRows ? graphs_.run(shape, stream_.get(), first)
                                                                   : first());
    while (chunk.count > 0) {
      ESPALIER_TRY(take_answers(request, chunk, result));
      const int done = chunk.first + chunk.count;
      chunk = chunk_of(request, done, std::min(count - done, kMostLogitRows));
      if (chunk.count > 0) ESPALIER_TRY(head());
    }
    // Keys and values are there when the step returns, whatever was asked; so are errors.
    return stream_.wait();
  }

  Status make_room(int rows, int splits, int64_t list_bytes) {
    // With room to spare, so that a growing block table seldom moves.
    const bool moves = list_bytes > lists_.bytes();
    if (moves) {
      ESPALIER_TRY(lists_.ensure(2 * list_bytes));
      ESPALIER_TRY(host_lists_.ensure(2 * list_bytes));
    }
    const int64_t before = forward_.moves();
    ESPALIER_TRY(forward_.reserve(rows, splits));
    if (moves || forward_.moves() != before) graphs_.clear();
    return Status::ok();
  }

  // Answers of a step that are taken together, and what some of them need.
  struct Chunk {
    int first = 0;
    int count = 0;
    bool logits = false;
    bool likeliest = false;
    bool scores = false;
  };
  static Chunk chunk_of(const StepRequest& request, int first, int count) {
    Chunk chunk{.first = first, .count = count};
    for (int i = first; i < first + count; ++i) {
      const Need need = need_of(request, static_cast<size_t>(i));
      chunk.logits = chunk.logits || need == Need::kLogits;
      chunk.likeliest = chunk.likeliest || need == Need::kLikeliest;
      chunk.scores = chunk.scores || need == Need::kScore;
    }
    return chunk;
  }

  Status take_answers(const StepRequest& request, const Chunk& chunk, StepResult& result) {
    const auto vocabulary = static_cast<size_t>(limits_.vocabulary);
    const auto count = static_cast<size_t>(chunk.count);
    const size_t logit_bytes = chunk.logits ? count * vocabulary * sizeof(float) : 0;
    ESPALIER_TRY(host_logits_.ensure(static_cast<int64_t>(logit_bytes)));
    ESPALIER_TRY(host_scores_.ensure(kMostLogitRows * static_cast<int64_t>(sizeof(double))));
    ESPALIER_TRY(host_likeliest_.ensure(kMostLogitRows * static_cast<int64_t>(sizeof(int32_t))));
    ESPALIER_TRY(fetch(host_logits_, forward_.logits(), logit_bytes));
    ESPALIER_TRY(fetch(host_scores_, forward_.scores(), chunk.scores ? count * sizeof(double) : 0));
    ESPALIER_TRY(fetch(host_likeliest_, forward_.likeliest(), chunk.likeliest ? count * sizeof(int32_t) : 0));
    ESPALIER_TRY(stream_.wait());
    const size_t first_sample = request.logits.size();
    const size_t first_score = first_sample + request.samples.size();
    pool_->parallel_for(chunk.count, 1, [&](int64_t i, int64_t) {
      const size_t index = static_cast<size_t>(chunk.first + i);
      switch (need_of(request, index)) {
        case Need::kLikeliest: result.samples[index - first_sample] = host_likeliest_.as<int32_t>()[i]; break;
        case Need::kScore: result.scores[index - first_score] = host_scores_.as<double>()[i]; break;
        case Need::kLogits:
          answer(request, index, {host_logits_.as<float>() + static_cast<size_t>(i) * vocabulary, vocabulary}, result);
      }
    });
    return Status::ok();
  }

  Status fetch(const PinnedMemory& to, const void* from, size_t bytes) const {
    if (bytes == 0) return Status::ok();
    return to_status(cudaMemcpyAsync(to.as<void>(), from, bytes, cudaMemcpyDeviceToHost, stream_.get()),
                     "cudaMemcpyAsync");
  }

  // How the keys of a row are shared out: by the longest row's chunks, up to a power of two, so that a sequence that
  // grows keeps the shape of its steps for long.
  struct Split {
    int splits = 1;
    int chunks = 1;  // of each
  };
  static Split split_of(const StepRequest& request) {
    if (request.batch.rows > kMostSplitRows) return {};
    int64_t longest = 0;
    for (const Slice& slice : request.batch.slices) longest = std::max(longest, slice.position + slice.count);
    const auto chunks = static_cast<int>(std::bit_ceil(static_cast<uint64_t>((longest - 1) / kAttendChunk + 1)));
    const int splits = std::min(chunks, kMostSplits);
    return {splits, chunks / splits};
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
  PinnedMemory host_lists_, host_logits_, host_scores_, host_likeliest_;
  StepGraphs graphs_;
};

}  // namespace

Result<std::unique_ptr<Engine>> make_engine(int device, std::shared_ptr<ThreadPool> pool, const StepLimits& limits,
                                            Model model) {
  Result<Stream> stream = Stream::create();
  if (!stream.is_ok()) return stream.status();
  // Copies of weights are done before a step begins on a stream of its own.
  ESPALIER_CUDA_TRY(cudaDeviceSynchronize());
  return std::unique_ptr<Engine>(
      std::make_unique<CudaEngine>(device, std::move(pool), limits, std::move(model), std::move(stream.value())));
}

Result<std::unique_ptr<Engine>> load_engine(const ModelSpec& spec, const EngineOptions& options,
                                            const LoadProgress& progress, const std::atomic<bool>* cancel) {
  const int device = *options.gpu;
  ESPALIER_TRY(check_device(device));
  ESPALIER_CUDA_TRY(cudaSetDevice(device));
  std::shared_ptr<ThreadPool> pool = ThreadPool::shared(options.threads);
  Result<Model> model = upload(*pool, spec, options, progress, cancel);
  if (!model.is_ok()) return model.status();
  const StepLimits limits{spec.vocabulary_size, spec.max_positions, options.kv_blocks};
  return make_engine(device, std::move(pool), limits, std::move(model.value()));
}

}  // namespace espalier::cuda
