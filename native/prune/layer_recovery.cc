// LayerPruner::recover: what recover_experts needs, gathered from a layer.
#include <algorithm>
#include <cmath>
#include <optional>

#include "prune/layer_pruner.h"

namespace espalier {
namespace {

// Weights of experts that are trained together: each takes 26 bytes while it is.
constexpr int64_t kWeightsTogether = int64_t{1} << 27;
constexpr int64_t kBatchTokens = 4096;
constexpr int64_t kHeldOut = 16;  // one token of so many decides when training has gone far enough

// Stages of the work and what each takes of its time, in thousandths.
constexpr int64_t kInputsShare = 50;
constexpr int64_t kAllShares = 1000;

// Writes what experts read, and where tokens went; and, if wished, the layer's output without the experts' part.
class InputsObserver final : public Observer {
 public:
  InputsObserver(int64_t hidden, std::vector<int32_t> first_expert)
      : hidden_(hidden), first_expert_(std::move(first_expert)) {}

  void on_expert(const ExpertBatch& batch) override {
    const int32_t expert = first_expert_[static_cast<size_t>(batch.part)] + batch.expert;
    for (int64_t r = 0; r < batch.rows; ++r) {
      const auto token = static_cast<size_t>(batch.tokens[r]);
      if (routes_.size() <= token) {
        routes_.resize(token + 1);
        inputs_.resize((token + 1) * static_cast<size_t>(hidden_));
        outputs_.resize((token + 1) * static_cast<size_t>(hidden_));
      }
      routes_[token].push_back({expert, batch.gates[r]});
      const float* input = batch.input + r * hidden_;
      const float* output = batch.output + r * hidden_;
      for (int64_t k = 0; k < hidden_; ++k) {
        const size_t at = token * static_cast<size_t>(hidden_) + static_cast<size_t>(k);
        inputs_[at] = input[k];
        outputs_[at] += batch.gates[r] * output[k];
        finite_ = finite_ && std::isfinite(input[k]) && std::isfinite(output[k]);
      }
    }
  }

  // The end of a batch of the layer, whose output is `states`.
  Status flush(int64_t first, int64_t rows, const float* states, HiddenFile& inputs, HiddenFile* rest) {
    const auto size = static_cast<size_t>(rows * hidden_);
    routes_.resize(static_cast<size_t>(rows));
    inputs_.resize(size);
    outputs_.resize(size);
    for (const std::vector<RoutedTokens::Route>& routes : routes_) {
      routed_.routes.insert(routed_.routes.end(), routes.begin(), routes.end());
      routed_.first.push_back(static_cast<int64_t>(routed_.routes.size()));
    }
    ESPALIER_TRY(inputs.write(first, rows, inputs_.data()));
    if (rest != nullptr) {
      for (size_t i = 0; i < size; ++i) outputs_[i] = states[i] - outputs_[i];
      ESPALIER_TRY(rest->write(first, rows, outputs_.data()));
    }
    routes_.clear();
    inputs_.clear();
    outputs_.clear();
    return Status::ok();
  }

  RoutedTokens& routed() { return routed_; }
  bool finite() const { return finite_; }

 private:
  int64_t hidden_;
  std::vector<int32_t> first_expert_;  // of each part, counting all
  RoutedTokens routed_;
  std::vector<std::vector<RoutedTokens::Route>> routes_;  // of the open batch
  std::vector<float> inputs_, outputs_;
  bool finite_ = true;
};

// Token rows of a file += sign · Σ g·E(x) over the experts [first, first + experts.size()); returns the mean square of
// the rows after it.
Result<double> add_outputs(ThreadPool& pool, const std::vector<ExpertFloats>& experts, int32_t first, float sign,
                           const RoutedTokens& routed, const HiddenFile& input, int64_t hidden, HiddenFile& sums,
                           const std::atomic<bool>* cancel) {
  std::vector<ExpertTrainer> forward;
  for (const ExpertFloats& weights : experts) {
    const auto width = static_cast<int64_t>(weights[0].size()) / hidden;
    forward.emplace_back(ExpertTrainer::Matrices{TrainedMatrix(width, hidden, 0, weights[0]),
                                                 TrainedMatrix(width, hidden, 0, weights[1]),
                                                 TrainedMatrix(hidden, width, 0, weights[2])});
  }
  RoutedBatch batch(pool, forward, first, routed, input, sums, hidden);
  std::vector<int64_t> tokens;
  std::vector<float> rows, before;
  double squares = 0;
  for (int64_t begin = 0; begin < routed.count(); begin += kBatchTokens) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return Status(Code::kAborted, "stopped");
    const int64_t count = std::min(kBatchTokens, routed.count() - begin);
    tokens.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) tokens[static_cast<size_t>(i)] = begin + i;
    ESPALIER_TRY(batch.forward(tokens));
    // The batch gives sums - output.
    before.resize(static_cast<size_t>(count * hidden));
    ESPALIER_TRY(sums.read(begin, count, before.data()));
    rows.assign(batch.missing().begin(), batch.missing().end());
    for (size_t i = 0; i < rows.size(); ++i) {
      if (sign > 0) rows[i] = 2 * before[i] - rows[i];
      squares += static_cast<double>(rows[i]) * rows[i];
    }
    ESPALIER_TRY(sums.write(begin, count, rows.data()));
  }
  return squares / static_cast<double>(std::max<int64_t>(routed.count(), 1));
}

// Whole sequences from the end, at least one token of kHeldOut.
int64_t held_out_tokens(const std::vector<int64_t>& lengths) {
  int64_t total = 0;
  for (const int64_t length : lengths) total += length;
  int64_t held_out = 0;
  for (size_t s = lengths.size(); s > 1 && held_out * kHeldOut < total; --s) held_out += lengths[s - 1];
  return lengths.size() > 1 ? held_out : total / kHeldOut;
}

}  // namespace

Result<std::vector<ExpertRecoverReport>> LayerPruner::recover(const RecoverLayerRequest& request,
                                                              const Progress& progress,
                                                              const std::atomic<bool>* cancel) {
  const auto share = [&](int64_t from, int64_t to) {
    return [&progress, from, to](int64_t done, int64_t total) {
      if (progress) progress(from + (to - from) * done / std::max<int64_t>(total, 1), kAllShares);
    };
  };
  std::vector<ExpertRecoverReport> reports;
  std::vector<int32_t> first_expert;
  for (int part = 0; part < weights_.parts(); ++part) {
    first_expert.push_back(static_cast<int32_t>(reports.size()));
    for (int e = 0; e < weights_.experts(part); ++e) reports.push_back({.part = part, .expert = e, .report = {}});
  }
  const bool is_last = request.head.present();
  Result<HiddenFile> input = HiddenFile::create_temporary(request.scratch + ".inputs", hidden_);
  if (!input.is_ok()) return input.status();
  Result<HiddenFile> goal = HiddenFile::create_temporary(request.scratch + ".goal", hidden_);
  if (!goal.is_ok()) return goal.status();
  std::optional<HiddenFile> dense_output;
  if (is_last) {
    Result<HiddenFile> created = HiddenFile::create_temporary(request.scratch + ".output", hidden_);
    if (!created.is_ok()) return created.status();
    dense_output.emplace(std::move(created.value()));
  }

  InputsObserver observer(hidden_, first_expert);
  const std::vector<float> zeros(static_cast<size_t>(kBatchTokens * hidden_));
  const auto keep = [&](int64_t first, int64_t rows, const float* states) -> Status {
    ESPALIER_TRY(observer.flush(first, rows, states, input.value(), dense_output ? &*dense_output : nullptr));
    for (int64_t r = 0; r < rows; r += kBatchTokens) {
      ESPALIER_TRY(goal.value().write(first + r, std::min(kBatchTokens, rows - r), zeros.data()));
    }
    return Status::ok();
  };
  ESPALIER_TRY(run(request.input, request.lengths, &observer, keep, share(0, kInputsShare), cancel));
  RoutedTokens& routed = observer.routed();
  for (const RoutedTokens::Route& route : routed.routes) ++reports[static_cast<size_t>(route.expert)].tokens;
  if (!observer.finite()) return reports;

  // Those that are trained first, so that they are neighbours.
  std::vector<size_t> order;
  for (const bool trained : {true, false}) {
    for (size_t i = 0; i < reports.size(); ++i) {
      reports[i].trained = reports[i].tokens >= hidden_;
      if (reports[i].trained == trained) order.push_back(i);
    }
  }
  std::vector<int32_t> place(order.size());
  for (size_t i = 0; i < order.size(); ++i) place[order[i]] = static_cast<int32_t>(i);
  for (RoutedTokens::Route& route : routed.routes) route.expert = place[static_cast<size_t>(route.expert)];

  const auto load = [&](size_t begin, size_t end, bool dense, std::vector<ExpertFloats>& out) -> Status {
    out.clear();
    for (size_t i = begin; i < end; ++i) {
      ExpertFloats& expert = out.emplace_back();
      for (const Role role : kRoles) {
        const MatrixId id{reports[order[i]].part, reports[order[i]].expert, role};
        Result<std::vector<float>> values = dense ? weights_.dense(id) : weights_.current(id);
        if (!values.is_ok()) return values.status();
        expert[static_cast<size_t>(role)] = std::move(values.value());
      }
    }
    return Status::ok();
  };
  const auto add = [&](const std::vector<ExpertFloats>& experts, size_t first, float sign, HiddenFile& sums) {
    return add_outputs(*pool_, experts, static_cast<int32_t>(first), sign, routed, input.value(), hidden_, sums,
                       cancel);
  };
  std::vector<size_t> ends;  // of the groups that are trained together; then of single experts that are not
  int64_t together = 0;
  size_t trained_count = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const WeightRef& ref = weights_.ref({reports[order[i]].part, reports[order[i]].expert, Role::kGate});
    const int64_t size = 3 * ref.rows * ref.cols;
    const bool trained = reports[order[i]].trained;
    trained_count += trained ? 1 : 0;
    if (!ends.empty() && trained && together + size <= kWeightsTogether) {
      together += size;
      ends.back() = i + 1;
    } else {
      together = size;
      ends.push_back(i + 1);
    }
  }
  std::vector<ExpertFloats> dense, pruned;
  if (dense_output) {
    size_t begin = 0;
    for (const size_t end : ends) {
      ESPALIER_TRY(load(begin, end, true, dense));
      const Result<double> added = add(dense, begin, 1, *dense_output);
      if (!added.is_ok()) return added.status();
      begin = end;
    }
  }
  std::optional<LogitsLoss> logits;
  if (dense_output) {
    Result<std::vector<float>> norm = load_vector(request.final_norm);
    if (!norm.is_ok()) return norm.status();
    Result<HostMatrix> head = HostMatrix::load(request.head);
    if (!head.is_ok()) return head.status();
    Result<LogitsLoss> made =
        LogitsLoss::create(*dense_output, std::move(norm.value()), norm_epsilon_, head.value().to_floats());
    if (!made.is_ok()) return made.status();
    logits.emplace(std::move(made.value()));
  }

  // The goal of a group is what its dense experts give, and what was lost before it.
  const auto visit_group = [&](size_t begin, size_t end) -> Status {
    ESPALIER_TRY(load(begin, end, true, dense));
    const Result<double> wanted = add(dense, begin, 1, goal.value());
    if (!wanted.is_ok()) return wanted.status();
    ESPALIER_TRY(load(begin, end, false, pruned));
    if (begin < trained_count) {
      const SquaredLoss squared(hidden_, wanted.value() > 0 ? 1 / wanted.value() : 1);
      const RecoverRequest training{.routed = &routed,
                                    .first_expert = static_cast<int32_t>(begin),
                                    .input = &input.value(),
                                    .goal = &goal.value(),
                                    .hidden = hidden_,
                                    .loss = logits ? static_cast<const RecoveryLoss*>(&*logits) : &squared,
                                    .held_out = held_out_tokens(request.lengths)};
      RecoverOptions options = request.options;
      options.gradual = options.gradual && !grouped_zeros_;
      const auto from = static_cast<int64_t>(begin);
      const auto to = static_cast<int64_t>(end);
      const auto all = static_cast<int64_t>(trained_count);
      constexpr int64_t kTraining = kAllShares - kInputsShare;
      const Result<RecoverReport> report =
          recover_experts(*pool_, training, dense, pruned, options,
                          share(kInputsShare + kTraining * from / all, kInputsShare + kTraining * to / all), cancel);
      if (!report.is_ok()) return report.status();
      for (size_t i = begin; i < end; ++i) {
        ExpertRecoverReport& own = reports[order[i]];
        own.report = report.value();
        for (const Role role : kRoles) {
          ESPALIER_TRY(replace({own.part, own.expert, role}, pruned[i - begin][static_cast<size_t>(role)]));
        }
      }
    }
    const Result<double> left = add(pruned, begin, -1, goal.value());
    return left.status();
  };
  // Those that are not trained come first here: the others can make up for them.
  for (const bool trained : {false, true}) {
    size_t begin = 0;
    for (const size_t end : ends) {
      if ((begin < trained_count) == trained) ESPALIER_TRY(visit_group(begin, end));
      begin = end;
    }
  }
  return reports;
}

}  // namespace espalier
