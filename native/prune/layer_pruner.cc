#include "prune/layer_pruner.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "prune/hidden_file.h"

namespace espalier {
namespace {

// Tokens that are run together: enough for products at full speed, whatever the length of the sequences.
constexpr int64_t kBatchTokens = 4096;

// Adds what each expert sees to its statistics.
class StatisticsObserver final : public Observer {
 public:
  StatisticsObserver(ThreadPool& pool, bool router_weighted, std::vector<std::vector<ExpertStatistics>>& statistics)
      : pool_(pool), router_weighted_(router_weighted), statistics_(statistics) {}

  void on_expert(const ExpertBatch& batch) override {
    ExpertStatistics& expert = statistics_[static_cast<size_t>(batch.part)][static_cast<size_t>(batch.expert)];
    const float* gates = router_weighted_ ? batch.gates : nullptr;
    expert.input.add(pool_, batch.input, batch.rows, batch.hidden, gates);
    expert.activation.add(pool_, batch.activation, batch.rows, batch.width, gates);
  }

 private:
  ThreadPool& pool_;
  bool router_weighted_;
  std::vector<std::vector<ExpertStatistics>>& statistics_;
};

const WeightRef& weight_of(const MlpSpec& mlp, Role role) {
  return role == Role::kGate ? mlp.gate : role == Role::kUp ? mlp.up : mlp.down;
}

Linear& linear_of(Mlp& mlp, Role role) {
  return role == Role::kGate ? mlp.gate : role == Role::kUp ? mlp.up : mlp.down;
}

Status check_finite(const WeightRef& ref) {
  if (!ref.present()) return Status::ok();
  Result<HostMatrix> host = HostMatrix::load(ref);
  if (!host.is_ok()) return host.status();
  int64_t bad = 0;
  for (const float value : host.value().to_floats()) bad += !std::isfinite(value);
  if (bad == 0) return Status::ok();
  return Status(Code::kNonFinite, ref.name + " holds " + std::to_string(bad) + " values that are NaN or infinite")
      .with_tensor(ref.name);
}

Status check_finite(const LayerSpec& spec) {
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
  for (const WeightRef* ref : refs) ESPALIER_TRY(check_finite(*ref));
  return Status::ok();
}

bool cancelled(const std::atomic<bool>* cancel) { return cancel != nullptr && cancel->load(std::memory_order_relaxed); }

// A batch of whole sequences, each with cache blocks of its own.
Batch batch_of(const std::vector<int64_t>& lengths, size_t begin, size_t end, int64_t& blocks) {
  Batch batch;
  blocks = 0;
  for (size_t s = begin; s < end; ++s) {
    Slice slice{.first_row = batch.rows, .count = lengths[s], .position = 0, .blocks = {}};
    for (int64_t b = 0; b < (lengths[s] + kKvBlock - 1) / kKvBlock; ++b)
      slice.blocks.push_back(static_cast<int32_t>(blocks++));
    batch.rows += lengths[s];
    batch.slices.push_back(std::move(slice));
  }
  return batch;
}

}  // namespace

Result<std::unique_ptr<LayerPruner>> LayerPruner::load(int threads, const LayerSpec& spec, const RopeSpec& rope,
                                                       int64_t hidden, float norm_epsilon, bool allow_nonfinite) {
  if (!allow_nonfinite) ESPALIER_TRY(check_finite(spec));
  std::unique_ptr<LayerPruner> pruner(new LayerPruner);
  pruner->pool_ = ThreadPool::shared(threads);
  pruner->spec_ = spec;
  pruner->rope_ = rope;
  pruner->hidden_ = hidden;
  pruner->norm_epsilon_ = norm_epsilon;
  pruner->allow_nonfinite_ = allow_nonfinite;
  Result<DecoderLayer> layer = DecoderLayer::load(*pruner->pool_, WeightPolicy{}, WeightPolicy{}, spec);
  if (!layer.is_ok()) return layer.status();
  pruner->layer_ = std::move(layer.value());
  for (const FeedForwardPartSpec& part : spec.feed_forward) pruner->pruned_.emplace_back(part.experts.size());
  return pruner;
}

Result<std::vector<PartSurvey>> LayerPruner::survey(const ForwardRequest& request, const SurveyOptions& options,
                                                    const Progress& progress, const std::atomic<bool>* cancel) {
  Result<ExpertSurvey> survey = ExpertSurvey::create({*pool_, cpu_kernels()}, layer_.feed_forward(), options);
  if (!survey.is_ok()) return survey.status();
  ESPALIER_TRY(forward(request, &survey.value(), progress, cancel));
  return survey.value().finish();
}

Status LayerPruner::forward(const ForwardRequest& request, Observer* watcher, const Progress& progress,
                            const std::atomic<bool>* cancel) {
  Result<HiddenFile> input = HiddenFile::open_for_reading(request.input, hidden_);
  if (!input.is_ok()) return input.status();
  std::optional<HiddenFile> output;
  if (!request.output.empty()) {
    Result<HiddenFile> created = HiddenFile::create(request.output, hidden_);
    if (!created.is_ok()) return created.status();
    output.emplace(std::move(created.value()));
  }
  if (request.collect) {
    statistics_.clear();
    for (FeedForwardPart& part : layer_.feed_forward()) {
      std::vector<ExpertStatistics>& experts = statistics_.emplace_back();
      if (!part.is_routed()) continue;
      for (const Mlp& mlp : part.experts()) {
        Result<ExpertStatistics> created = ExpertStatistics::create(hidden_, mlp.width(), request.gram);
        if (!created.is_ok()) return created.status();
        experts.push_back(std::move(created.value()));
      }
    }
  }
  StatisticsObserver observer(*pool_, request.router_weighted, statistics_);
  const Compute compute{*pool_, cpu_kernels()};
  int64_t total = 0;
  for (const int64_t length : request.lengths) total += length;

  KvLayer cache;
  int64_t cache_blocks = 0;
  AlignedBuffer<float> states;
  int64_t done = 0;
  for (size_t begin = 0; begin < request.lengths.size();) {
    if (cancelled(cancel)) return {Code::kAborted, "stopped"};
    size_t end = begin;
    int64_t tokens = 0;
    while (end < request.lengths.size() && (end == begin || tokens + request.lengths[end] <= kBatchTokens)) {
      tokens += request.lengths[end++];
    }
    int64_t blocks = 0;
    const Batch batch = batch_of(request.lengths, begin, end, blocks);
    if (blocks > cache_blocks) {
      if (!cache.allocate(blocks, layer_.attention().kv_heads(), layer_.attention().head_dim())) {
        return {Code::kOutOfMemory, "not enough memory for the keys and values of a sequence"};
      }
      cache_blocks = blocks;
    }
    states.ensure(static_cast<size_t>(batch.rows * hidden_));
    ESPALIER_TRY(input.value().read(done, batch.rows, states.data()));
    layer_.forward(compute, batch, RopeRows::compute(rope_, batch), norm_epsilon_, cache, hidden_, states.data(),
                   request.collect ? &observer : watcher);
    if (output) ESPALIER_TRY(output->write(done, batch.rows, states.data()));
    done += batch.rows;
    begin = end;
    if (progress) progress(done, total);
  }
  return output ? output->sync() : Status::ok();
}

Status LayerPruner::prune_one(const MethodPlan& plan, const PreparedSite& site, ExpertMatrixReport& report) {
  const auto part = static_cast<size_t>(report.part);
  const auto expert = static_cast<size_t>(report.expert);
  const WeightRef& ref = weight_of(spec_.feed_forward[part].experts[expert], report.role);
  Result<HostMatrix> host = HostMatrix::load(ref);
  if (!host.is_ok()) return host.status();
  std::vector<float> weights = host.value().to_floats();

  Result<MatrixReport> pruned = prune_matrix(*pool_, plan, site, weights.data(), ref.rows, ref.cols);
  if (!pruned.is_ok()) {
    if (pruned.status().code() == Code::kNonFinite && allow_nonfinite_) {
      report.skipped = true;
    } else {
      return Status(pruned.status()).with_tensor(ref.name);
    }
  } else {
    report.matrix = pruned.value();
  }
  std::vector<uint8_t>& bytes = pruned_[part][expert][static_cast<size_t>(report.role)];
  bytes.resize(weights.size() * static_cast<size_t>(dtype_bits(ref.dtype) / 8));
  // Counted as stored: rounding can make a zero of a small weight.
  report.matrix.zeros = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    store_float(ref.dtype, bytes.data(), static_cast<int64_t>(i), weights[i]);
    weights[i] = load_float(ref.dtype, bytes.data(), static_cast<int64_t>(i));
    report.matrix.zeros += weights[i] == 0.0f ? 1 : 0;
  }
  report.matrix.kept = ref.rows * ref.cols - report.matrix.zeros;
  Result<Linear> linear = Linear::from_floats(*pool_, WeightPolicy{}, ref.dtype, ref.rows, ref.cols, weights.data());
  if (!linear.is_ok()) return linear.status();
  linear_of(layer_.feed_forward()[part].experts()[expert], report.role) = std::move(linear.value());
  return Status::ok();
}

Result<std::vector<ExpertMatrixReport>> LayerPruner::prune(const MethodPlan& plan, const Progress& progress,
                                                           const std::atomic<bool>* cancel) {
  std::vector<ExpertMatrixReport> reports;
  int64_t total = 0;
  for (const FeedForwardPartSpec& part : spec_.feed_forward) total += static_cast<int64_t>(part.experts.size()) * 3;
  for (size_t p = 0; p < spec_.feed_forward.size(); ++p) {
    for (size_t e = 0; e < spec_.feed_forward[p].experts.size(); ++e) {
      ExpertStatistics* statistics = statistics_.empty() ? nullptr : &statistics_[p][e];
      const auto prune_site = [&](SiteStatistics* site, std::initializer_list<Role> roles) -> Status {
        if (cancelled(cancel)) return {Code::kAborted, "stopped"};
        Result<PreparedSite> prepared = prepare_site(*pool_, plan, site);
        if (!prepared.is_ok() && prepared.status().code() == Code::kNonFinite && allow_nonfinite_) {
          // What NaN in a weight does to the statistics behind it says nothing about these weights.
          PreparedSite blind;
          blind.fallback = true;
          prepared = std::move(blind);
        }
        if (!prepared.is_ok()) {
          const MlpSpec& mlp = spec_.feed_forward[p].experts[e];
          return Status(prepared.status()).with_tensor(weight_of(mlp, *roles.begin()).name);
        }
        for (const Role role : roles) {
          ExpertMatrixReport report;
          report.part = static_cast<int>(p);
          report.expert = static_cast<int>(e);
          report.role = role;
          report.tokens = site == nullptr ? 0 : site->tokens();
          ESPALIER_TRY(prune_one(plan, prepared.value(), report));
          reports.push_back(report);
          if (progress) progress(static_cast<int64_t>(reports.size()), total);
        }
        return Status::ok();
      };
      ESPALIER_TRY(prune_site(statistics ? &statistics->input : nullptr, {Role::kGate, Role::kUp}));
      ESPALIER_TRY(prune_site(statistics ? &statistics->activation : nullptr, {Role::kDown}));
    }
  }
  return reports;
}

Result<std::span<const uint8_t>> LayerPruner::tensor(int part, int expert, Role role) const {
  const auto p = static_cast<size_t>(part);
  const auto e = static_cast<size_t>(expert);
  if (p >= pruned_.size() || e >= pruned_[p].size() || pruned_[p][e][static_cast<size_t>(role)].empty()) {
    return Status(Code::kUsage, "the layer has no such pruned matrix");
  }
  return std::span<const uint8_t>(pruned_[p][e][static_cast<size_t>(role)]);
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
