#include "prune/layer_pruner.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <optional>

#include "prune/cuda/layer_runner.h"
#include "prune/hidden_file.h"

namespace espalier {
namespace {

// Tokens that are run together: enough for products at full speed, whatever the length of the sequences.
constexpr int64_t kBatchTokens = 4096;

Status check_finite(ThreadPool& pool, const WeightRef& ref) {
  if (!ref.present()) return Status::ok();
  const Result<HostMatrix> host = HostMatrix::load(ref, &pool);
  if (!host.is_ok()) return host.status();
  std::atomic<int64_t> bad{0};
  pool.parallel_for(ref.rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(ref.cols));
    int64_t own = 0;
    for (int64_t row = begin; row < end; ++row) {
      host.value().read_row(row, values.data());
      for (const float value : values) own += std::isfinite(value) ? 0 : 1;
    }
    bad += own;
  });
  if (bad == 0) return Status::ok();
  return Status(Code::kNonFinite,
                ref.name + " holds " + std::to_string(bad.load()) + " values that are NaN or infinite")
      .with_tensor(ref.name);
}

Status check_finite(ThreadPool& pool, const LayerSpec& spec) {
  const AttentionSpec& a = spec.attention;
  std::vector<const WeightRef*> refs = {&spec.attention_norm,
                                        &spec.feed_forward_norm,
                                        &a.q,
                                        &a.k,
                                        &a.v,
                                        &a.o,
                                        &a.q_bias,
                                        &a.k_bias,
                                        &a.v_bias,
                                        &a.o_bias,
                                        &a.q_norm,
                                        &a.k_norm};
  for (const FeedForwardPartSpec& part : spec.feed_forward) {
    refs.insert(refs.end(), {&part.mlp.gate, &part.mlp.up, &part.mlp.down, &part.output_gate, &part.router});
    for (const MlpSpec& mlp : part.experts) refs.insert(refs.end(), {&mlp.gate, &mlp.up, &mlp.down});
  }
  for (const WeightRef* ref : refs) ESPALIER_TRY(check_finite(pool, *ref));
  return Status::ok();
}

// A batch of whole sequences, each with cache blocks of its own.
Batch batch_of(const std::vector<int64_t>& lengths, size_t begin, size_t end) {
  Batch batch;
  int32_t blocks = 0;
  for (size_t s = begin; s < end; ++s) {
    Slice slice{.first_row = batch.rows, .count = lengths[s], .position = 0, .blocks = {}};
    for (int64_t b = 0; b < (lengths[s] + kKvBlock - 1) / kKvBlock; ++b) slice.blocks.push_back(blocks++);
    batch.rows += lengths[s];
    batch.slices.push_back(std::move(slice));
  }
  return batch;
}

// Whole sequences together, as many as fit.
std::vector<Batch> batches_of(const std::vector<int64_t>& lengths) {
  std::vector<Batch> batches;
  for (size_t begin = 0; begin < lengths.size();) {
    size_t end = begin;
    int64_t tokens = 0;
    while (end < lengths.size() && (end == begin || tokens + lengths[end] <= kBatchTokens)) tokens += lengths[end++];
    batches.push_back(batch_of(lengths, begin, end));
    begin = end;
  }
  return batches;
}

}  // namespace

Linear& linear_of(Mlp& mlp, Role role) {
  return role == Role::kGate ? mlp.gate : role == Role::kUp ? mlp.up : mlp.down;
}

Result<std::unique_ptr<LayerPruner>> LayerPruner::load(int threads, const LayerSpec& spec, const RopeSpec& rope,
                                                       int64_t hidden, float norm_epsilon, bool allow_nonfinite,
                                                       std::optional<int> gpu) {
  std::unique_ptr<LayerPruner> pruner(new LayerPruner(spec));
  pruner->pool_ = ThreadPool::shared(threads);
  if (!allow_nonfinite) ESPALIER_TRY(check_finite(*pruner->pool_, spec));
  pruner->rope_ = rope;
  pruner->hidden_ = hidden;
  pruner->norm_epsilon_ = norm_epsilon;
  pruner->allow_nonfinite_ = allow_nonfinite;
  Result<DecoderLayer> layer = DecoderLayer::load(*pruner->pool_, WeightPolicy{}, WeightPolicy{}, spec);
  if (!layer.is_ok()) return layer.status();
  pruner->layer_ = std::move(layer.value());
  const RunnableLayer runnable{*pruner->pool_, pruner->spec_, pruner->rope_, hidden, norm_epsilon, pruner->layer_};
  if (!gpu) {
    pruner->runner_ = make_cpu_runner(runnable);
    return pruner;
  }
  Result<std::unique_ptr<LayerRunner>> runner = cuda::make_layer_runner(*gpu, runnable);
  if (!runner.is_ok()) return runner.status();
  pruner->runner_ = std::move(runner.value());
  return pruner;
}

Result<std::vector<PartSurvey>> LayerPruner::survey(const ForwardRequest& request, const SurveyOptions& options,
                                                    const Progress& progress, const std::atomic<bool>* cancel) {
  const Result<std::unique_ptr<LayerSurvey>> survey = runner_->survey(options);
  if (!survey.is_ok()) return survey.status();
  ESPALIER_TRY(forward(request, survey.value().get(), progress, cancel));
  return survey.value()->finish();
}

Status LayerPruner::forward(const ForwardRequest& request, LayerSurvey* survey, const Progress& progress,
                            const std::atomic<bool>* cancel) {
  std::optional<HiddenFile> output;
  if (!request.output.empty()) {
    Result<HiddenFile> created = HiddenFile::open_for_writing(request.output, hidden_);
    if (!created.is_ok()) return created.status();
    output.emplace(std::move(created.value()));
  }
  std::unique_ptr<GatheredStatistics> statistics;
  if (request.collect) {
    statistics_.reset();
    Result<std::unique_ptr<GatheredStatistics>> created = runner_->collect(*request.collect);
    if (!created.is_ok()) return created.status();
    statistics = std::move(created.value());
  }
  // What a batch gives is written while the next one is computed.
  std::future<Status> writing;
  const auto written = [&] { return writing.valid() ? writing.get() : Status::ok(); };
  const auto write = [&](int64_t first, int64_t rows, const float* states) -> Status {
    if (!output) return Status::ok();
    ESPALIER_TRY(written());
    writing = std::async(std::launch::async, [&output, at = request.first_output + first, rows, states] {
      Status done = output->write(at, rows, states);
      if (done.is_ok()) output->begin_sync(at, rows);
      return done;
    });
    return Status::ok();
  };
  const Status ran = run(request.input, request.first_input, request.lengths, {statistics.get(), survey, nullptr},
                         write, progress, cancel);
  const Status last = written();
  ESPALIER_TRY(ran);
  ESPALIER_TRY(last);
  if (statistics != nullptr) {
    ESPALIER_TRY(statistics->finish());
    statistics_ = std::move(statistics);
  }
  return output ? output->sync() : Status::ok();
}

Status LayerPruner::run(const std::string& input, int64_t first_input, const std::vector<int64_t>& lengths,
                        const Watchers& watchers, const Visit& visit, const Progress& progress,
                        const std::atomic<bool>* cancel) {
  Result<HiddenFile> states_file = HiddenFile::open_for_reading(input, hidden_);
  if (!states_file.is_ok()) return states_file.status();
  int64_t total = 0;
  for (const int64_t length : lengths) total += length;
  const std::vector<Batch> batches = batches_of(lengths);
  if (batches.empty()) return Status::ok();
  int64_t most_rows = 0;
  for (const Batch& batch : batches) most_rows = std::max(most_rows, batch.rows);
  // One that is read, one that is computed, one that `visit` saw.
  constexpr size_t kBuffers = 3;
  const Result<float*> states = runner_->states(static_cast<int64_t>(kBuffers) * most_rows);
  if (!states.is_ok()) return states.status();
  const auto buffer = [&](size_t b) {
    return states.value() + static_cast<int64_t>(b % kBuffers) * most_rows * hidden_;
  };
  const auto read = [&](size_t b, int64_t first) {
    return states_file.value().read(first_input + first, batches[b].rows, buffer(b));
  };
  Status ready = read(0, 0);
  int64_t done = 0;
  for (size_t b = 0; b < batches.size(); ++b) {
    ESPALIER_TRY(ready);
    ESPALIER_TRY(check_cancelled(cancel));
    const int64_t next = done + batches[b].rows;
    std::future<Status> reading;
    if (b + 1 < batches.size())
      reading = std::async(std::launch::async, [&read, b, next] { return read(b + 1, next); });
    const Status ran = runner_->forward(batches[b], buffer(b), watchers);
    if (reading.valid()) ready = reading.get();
    ESPALIER_TRY(ran);
    ESPALIER_TRY(visit(done, batches[b].rows, buffer(b)));
    done = next;
    if (progress) progress(done, total);
  }
  return Status::ok();
}

Result<Linear> LayerPruner::pack(const WeightRef& ref, const std::vector<float>& values) const {
  return Linear::from_floats(*pool_, WeightPolicy{}, ref.dtype, ref.rows, ref.cols, values.data());
}

std::vector<float> LayerPruner::current(const MatrixId& id) {
  std::vector<float> values;
  current(id, values);
  return values;
}

void LayerPruner::current(const MatrixId& id, std::vector<float>& out) {
  const PackedMatrix& matrix = linear(id).weights;
  out.resize(static_cast<size_t>(matrix.rows() * matrix.cols()));
  matrix.unpack(*pool_, out.data());
}

Status LayerPruner::replace(const MatrixId& id, std::vector<float>& values) {
  stored_id_.reset();
  round_floats(*pool_, weights_.ref(id).dtype, values);
  Result<Linear> packed = pack(weights_.ref(id), values);
  if (!packed.is_ok()) return packed.status();
  linear(id) = std::move(packed.value());
  runner_->layer_changed();
  return Status::ok();
}

Result<std::vector<ExpertMatrixMoments>> LayerPruner::measure(const std::atomic<bool>* cancel) {
  std::vector<ExpertMatrixMoments> all;
  std::vector<float> values;
  for (const MatrixId& id : weights_.ids()) {
    ESPALIER_TRY(check_cancelled(cancel));
    current(id, values);
    all.push_back({id, weight_moments(*pool_, values.data(), static_cast<int64_t>(values.size()))});
  }
  return all;
}

Result<std::span<const uint8_t>> LayerPruner::tensor(const MatrixId& id) {
  if (id.part < 0 || id.part >= weights_.parts() || id.expert < 0 || id.expert >= weights_.experts(id.part)) {
    return Status(Code::kUsage, "the layer has no such expert");
  }
  if (stored_id_ != id) {
    current(id, values_);
    store_floats(*pool_, weights_.ref(id).dtype, values_, stored_);
    stored_id_ = id;
  }
  return std::span<const uint8_t>(stored_);
}

Status write_embeddings(const WeightRef& embedding, const std::vector<int32_t>& tokens, const std::string& path) {
  Result<HostMatrix> host = HostMatrix::load(embedding);
  if (!host.is_ok()) return host.status();
  Result<HiddenFile> file = HiddenFile::create(path, embedding.cols);
  if (!file.is_ok()) return file.status();
  std::vector<float> rows;
  for (size_t begin = 0; begin < tokens.size(); begin += kBatchTokens) {
    const size_t count = std::min(static_cast<size_t>(kBatchTokens), tokens.size() - begin);
    rows.resize(count * static_cast<size_t>(embedding.cols));
    for (size_t i = 0; i < count; ++i) {
      const int32_t token = tokens[begin + i];
      if (token < 0 || token >= embedding.rows) {
        return {Code::kUsage, "token id " + std::to_string(token) + " is outside the vocabulary of " +
                                  std::to_string(embedding.rows)};
      }
      host.value().read_row(token, rows.data() + i * static_cast<size_t>(embedding.cols));
    }
    ESPALIER_TRY(file.value().write(static_cast<int64_t>(begin), static_cast<int64_t>(count), rows.data()));
  }
  return file.value().sync();
}

}  // namespace espalier
