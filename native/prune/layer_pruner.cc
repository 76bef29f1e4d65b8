#include "prune/layer_pruner.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "prune/balance.h"
#include "prune/hidden_file.h"
#include "prune/score.h"

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

Linear& linear_of(Mlp& mlp, Role role) {
  return role == Role::kGate ? mlp.gate : role == Role::kUp ? mlp.up : mlp.down;
}

Result<std::unique_ptr<LayerPruner>> LayerPruner::load(int threads, const LayerSpec& spec, const RopeSpec& rope,
                                                       int64_t hidden, float norm_epsilon, bool allow_nonfinite) {
  if (!allow_nonfinite) ESPALIER_TRY(check_finite(spec));
  std::unique_ptr<LayerPruner> pruner(new LayerPruner(spec));
  pruner->pool_ = ThreadPool::shared(threads);
  pruner->rope_ = rope;
  pruner->hidden_ = hidden;
  pruner->norm_epsilon_ = norm_epsilon;
  pruner->allow_nonfinite_ = allow_nonfinite;
  Result<DecoderLayer> layer = DecoderLayer::load(*pruner->pool_, WeightPolicy{}, WeightPolicy{}, spec);
  if (!layer.is_ok()) return layer.status();
  pruner->layer_ = std::move(layer.value());
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
  std::optional<HiddenFile> output;
  if (!request.output.empty()) {
    Result<HiddenFile> created = HiddenFile::open_for_writing(request.output, hidden_);
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
  ESPALIER_TRY(run(
      request.input, request.first_input, request.lengths, request.collect ? &observer : watcher,
      [&](int64_t first, int64_t rows, const float* states) {
        return output ? output->write(request.first_output + first, rows, states) : Status::ok();
      },
      progress, cancel));
  return output ? output->sync() : Status::ok();
}

Status LayerPruner::run(const std::string& input, int64_t first_input, const std::vector<int64_t>& lengths,
                        Observer* observer, const Visit& visit, const Progress& progress,
                        const std::atomic<bool>* cancel) {
  Result<HiddenFile> states_file = HiddenFile::open_for_reading(input, hidden_);
  if (!states_file.is_ok()) return states_file.status();
  const Compute compute{*pool_, cpu_kernels()};
  int64_t total = 0;
  for (const int64_t length : lengths) total += length;

  KvLayer cache;
  int64_t cache_blocks = 0;
  AlignedBuffer<float> states;
  int64_t done = 0;
  for (size_t begin = 0; begin < lengths.size();) {
    if (cancelled(cancel)) return {Code::kAborted, "stopped"};
    size_t end = begin;
    int64_t tokens = 0;
    while (end < lengths.size() && (end == begin || tokens + lengths[end] <= kBatchTokens)) tokens += lengths[end++];
    int64_t blocks = 0;
    const Batch batch = batch_of(lengths, begin, end, blocks);
    if (blocks > cache_blocks) {
      if (!cache.allocate(blocks, layer_.attention().kv_heads(), layer_.attention().head_dim())) {
        return {Code::kOutOfMemory, "not enough memory for the keys and values of a sequence"};
      }
      cache_blocks = blocks;
    }
    states.ensure(static_cast<size_t>(batch.rows * hidden_));
    ESPALIER_TRY(states_file.value().read(first_input + done, batch.rows, states.data()));
    layer_.forward(compute, batch, RopeRows::compute(rope_, batch), norm_epsilon_, cache, hidden_, states.data(),
                   observer);
    ESPALIER_TRY(visit(done, batch.rows, states.data()));
    done += batch.rows;
    begin = end;
    if (progress) progress(done, total);
  }
  return Status::ok();
}

Result<Linear> LayerPruner::pack(const WeightRef& ref, const std::vector<float>& values) const {
  return Linear::from_floats(*pool_, WeightPolicy{}, ref.dtype, ref.rows, ref.cols, values.data());
}

Status LayerPruner::replace(const MatrixId& id, std::vector<float>& values) {
  weights_.replace(id, values);
  Result<Linear> linear = pack(weights_.ref(id), values);
  if (!linear.is_ok()) return linear.status();
  Mlp& mlp = layer_.feed_forward()[static_cast<size_t>(id.part)].experts()[static_cast<size_t>(id.expert)];
  linear_of(mlp, id.role) = std::move(linear.value());
  return Status::ok();
}

Status LayerPruner::prune_one(const MethodPlan& plan, const PreparedSite& site, ExpertMatrixReport& report) {
  const WeightRef& ref = weights_.ref(report.id);
  Result<std::vector<float>> current = weights_.current(report.id);
  if (!current.is_ok()) return current.status();
  Result<MatrixReport> pruned = prune_matrix(*pool_, plan, site, current.value().data(), ref.rows, ref.cols);
  if (pruned.is_ok()) {
    report.matrix = pruned.value();
  } else if (pruned.status().code() == Code::kNonFinite && allow_nonfinite_) {
    report.skipped = true;
  } else {
    return Status(pruned.status()).with_tensor(ref.name);
  }
  return replace(report.id, current.value());
}

Result<std::vector<double>> LayerPruner::sparsities(const MethodPlan& plan, int part, Role role) {
  const auto experts = static_cast<size_t>(weights_.experts(part));
  if (plan.meeting == Meeting::kEach || plan.budget.is_grouped() || statistics_.empty()) {
    return std::vector<double>(experts, plan.budget.sparsity);
  }
  std::vector<int64_t> sizes;
  for (int expert = 0; expert < weights_.experts(part); ++expert) {
    const WeightRef& ref = weights_.ref({part, expert, role});
    sizes.push_back(ref.rows * ref.cols);
  }
  // The loss of a weight alone, w² · ‖X_j‖², orders as its root does.
  std::vector<float> scores;
  return balanced_sparsities(*pool_, plan.budget.sparsity, sizes, [&](size_t e) -> Result<std::span<const float>> {
    Result<std::vector<float>> found = activation_scores({part, static_cast<int>(e), role});
    if (!found.is_ok()) return found.status();
    scores = std::move(found.value());
    return std::span<const float>(scores);
  });
}

Result<std::vector<float>> LayerPruner::activation_scores(const MatrixId& id) const {
  Result<std::vector<float>> values = weights_.current(id);
  if (!values.is_ok()) return values.status();
  const ExpertStatistics& expert = statistics_[static_cast<size_t>(id.part)][static_cast<size_t>(id.expert)];
  const SiteStatistics& site = id.role == Role::kDown ? expert.activation : expert.input;
  std::vector<float> norms;
  for (const double norm : site.squared_norms()) norms.push_back(static_cast<float>(std::sqrt(norm)));
  std::vector<float> scores(values.value().size());
  const WeightRef& ref = weights_.ref(id);
  score_activation(*pool_, values.value().data(), ref.rows, ref.cols, norms.data(), scores.data());
  for (float& score : scores) score = std::isfinite(score) ? score : 0.0f;
  return scores;
}

Result<double> LayerPruner::outlier_share(double multiple, const std::atomic<bool>* cancel) const {
  if (statistics_.empty()) return 0.0;
  double sum = 0;
  int64_t count = 0;
  int64_t above = 0;
  const auto each = [&](const auto& use) -> Status {
    for (const MatrixId& id : weights_.ids()) {
      if (cancelled(cancel)) return Status(Code::kAborted, "stopped");
      const Result<std::vector<float>> scores = activation_scores(id);
      if (!scores.is_ok()) return scores.status();
      for (const float score : scores.value()) use(static_cast<double>(score));
    }
    return Status::ok();
  };
  ESPALIER_TRY(each([&](double score) {
    sum += score;
    ++count;
  }));
  if (count == 0) return 0.0;
  const double limit = multiple * sum / static_cast<double>(count);
  ESPALIER_TRY(each([&](double score) { above += score > limit ? 1 : 0; }));
  return static_cast<double>(above) / static_cast<double>(count);
}

Result<std::optional<SiteStatistics>> LayerPruner::pool_inputs(const MethodPlan& plan, int part) {
  std::optional<SiteStatistics> pooled;
  const bool wanted = plan.update != Update::kNone && plan.shrinkage > 0 && !statistics_.empty();
  if (!wanted || weights_.experts(part) == 0) return pooled;
  Result<SiteStatistics> created = SiteStatistics::create(hidden_, true);
  if (!created.is_ok()) return created.status();
  pooled = std::move(created.value());
  for (ExpertStatistics& expert : statistics_[static_cast<size_t>(part)]) pooled->merge(*pool_, expert.input);
  return pooled;
}

Result<std::vector<ExpertMatrixReport>> LayerPruner::prune(const MethodPlan& plan, const Progress& progress,
                                                           const std::atomic<bool>* cancel) {
  grouped_zeros_ = plan.budget.is_grouped();
  std::vector<ExpertMatrixReport> reports;
  const auto total = static_cast<int64_t>(weights_.ids().size());
  for (int part = 0; part < weights_.parts(); ++part) {
    Result<std::optional<SiteStatistics>> pooled = pool_inputs(plan, part);
    if (!pooled.is_ok()) return pooled.status();
    std::array<std::vector<double>, kRoles.size()> shares;
    for (const Role role : kRoles) {
      Result<std::vector<double>> found = sparsities(plan, part, role);
      if (!found.is_ok()) return found.status();
      shares[static_cast<size_t>(role)] = std::move(found.value());
    }
    const SiteStatistics* layer_inputs = pooled.value() ? &*pooled.value() : nullptr;
    for (int expert = 0; expert < weights_.experts(part); ++expert) {
      ExpertStatistics* statistics =
          statistics_.empty() ? nullptr : &statistics_[static_cast<size_t>(part)][static_cast<size_t>(expert)];
      const auto prune_site = [&](SiteStatistics* site, const SiteStatistics* layer,
                                  std::initializer_list<Role> roles) -> Status {
        if (cancelled(cancel)) return {Code::kAborted, "stopped"};
        Result<PreparedSite> prepared = prepare_site(*pool_, plan, site, layer);
        if (!prepared.is_ok() && prepared.status().code() == Code::kNonFinite && allow_nonfinite_) {
          // What NaN in a weight does to the statistics behind it says nothing about these weights.
          PreparedSite blind;
          blind.fallback = true;
          prepared = std::move(blind);
        }
        if (!prepared.is_ok()) {
          return Status(prepared.status()).with_tensor(weights_.ref({part, expert, *roles.begin()}).name);
        }
        for (const Role role : roles) {
          ExpertMatrixReport report;
          report.id = {part, expert, role};
          report.tokens = site == nullptr ? 0 : site->tokens();
          MethodPlan own = plan;
          if (!own.budget.is_grouped()) {
            own.budget.sparsity = shares[static_cast<size_t>(role)][static_cast<size_t>(expert)];
          }
          ESPALIER_TRY(prune_one(own, prepared.value(), report));
          reports.push_back(report);
          if (progress) progress(static_cast<int64_t>(reports.size()), total);
        }
        return Status::ok();
      };
      ESPALIER_TRY(prune_site(statistics ? &statistics->input : nullptr, layer_inputs, {Role::kGate, Role::kUp}));
      ESPALIER_TRY(prune_site(statistics ? &statistics->activation : nullptr, nullptr, {Role::kDown}));
    }
  }
  return reports;
}

Result<std::vector<ExpertMatrixMoments>> LayerPruner::measure(const std::atomic<bool>* cancel) const {
  std::vector<ExpertMatrixMoments> all;
  for (const MatrixId& id : weights_.ids()) {
    if (cancelled(cancel)) return Status(Code::kAborted, "stopped");
    Result<std::vector<float>> values = weights_.current(id);
    if (!values.is_ok()) return values.status();
    all.push_back({id, weight_moments(*pool_, values.value().data(), static_cast<int64_t>(values.value().size()))});
  }
  return all;
}

Result<std::span<const uint8_t>> LayerPruner::tensor(const MatrixId& id) {
  if (id.part < 0 || id.part >= weights_.parts() || id.expert < 0 || id.expert >= weights_.experts(id.part)) {
    return Status(Code::kUsage, "the layer has no such expert");
  }
  return weights_.bytes(id);
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
