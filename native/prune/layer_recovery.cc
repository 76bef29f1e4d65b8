// LayerPruner::recover: a layer's experts in groups that fit into memory, each trained to give what it gave when dense
// and what the groups before it lost.
#include <algorithm>
#include <functional>
#include <optional>

#include "prune/captured_layer.h"
#include "prune/layer_pruner.h"

namespace espalier {
namespace {

// Weights of experts that are trained together: each takes 26 bytes while it is.
constexpr int64_t kWeightsTogether = int64_t{1} << 27;
constexpr int64_t kHeldOut = 32;  // one token of so many decides when training has gone far enough

// How far a layer's experts go from what they gave to what makes up for earlier layers. All the way, they would learn
// what only the calibration tokens have.
constexpr float kDenseShare = 0.5f;

// What the run over the calibration set takes of the time, in thousandths.
constexpr int64_t kRunShare = 50;
constexpr int64_t kAllShares = 1000;

// Whole sequences from the end, at least one token of kHeldOut.
int64_t held_out_tokens(const std::vector<int64_t>& lengths) {
  int64_t total = 0;
  for (const int64_t length : lengths) total += length;
  if (lengths.size() == 1) return total / kHeldOut;
  int64_t held_out = 0;
  for (size_t s = lengths.size(); s > 1 && held_out * kHeldOut < total; --s) held_out += lengths[s - 1];
  return held_out;
}

// Experts [begin, end), by the numbers that LayerRecovery gives them.
struct Group {
  size_t begin = 0;
  size_t end = 0;
  bool trained = false;
};

class LayerRecovery {
 public:
  using Current = std::function<std::vector<float>(const MatrixId&)>;
  using Replace = std::function<Status(const MatrixId&, std::vector<float>&)>;
  using Progress = LayerPruner::Progress;

  LayerRecovery(ThreadPool& pool, const ExpertWeights& weights, int64_t hidden, CapturedLayer& captured,
                std::vector<ExpertRecoverReport>& reports, Current current, Replace replace)
      : pool_(pool),
        weights_(weights),
        hidden_(hidden),
        captured_(captured),
        reports_(reports),
        current_(std::move(current)),
        replace_(std::move(replace)) {
    number_experts();
    make_groups();
  }

  Status run(const RecoverLayerRequest& request, const RecoverOptions& options, float norm_epsilon,
             const Progress& progress, const std::atomic<bool>* cancel) {
    cancel_ = cancel;
    const bool is_last = request.head.present();
    ESPALIER_TRY(aim(request, is_last ? 1.0f : kDenseShare));
    std::optional<LogitsLoss> logits;
    if (is_last) {
      Result<LogitsLoss> made = logits_loss(request, norm_epsilon);
      if (!made.is_ok()) return made.status();
      logits.emplace(std::move(made.value()));
    }
    // Those that are not trained come first: the others can make up for them.
    for (const bool trained : {false, true}) {
      for (const Group& group : groups_) {
        if (group.trained != trained) continue;
        std::vector<ExpertFloats> dense, now;
        ESPALIER_TRY(load(group, true, dense));
        ESPALIER_TRY(load(group, false, now));
        const Result<double> wanted = add(dense, group, 1, captured_.goal());
        if (!wanted.is_ok()) return wanted.status();
        if (trained) {
          const SquaredLoss squared(hidden_, wanted.value() > 0 ? 1 / wanted.value() : 1);
          const RecoveryLoss& loss = logits ? static_cast<const RecoveryLoss&>(*logits) : squared;
          ESPALIER_TRY(train(group, dense, now, loss, held_out_tokens(request.lengths), options, progress));
        }
        ESPALIER_TRY(add(now, group, -1, captured_.goal()).status());
      }
    }
    return Status::ok();
  }

 private:
  // Those that are trained get the first numbers, so that groups of them have no gaps.
  void number_experts() {
    for (const RoutedTokens::Route& route : captured_.routed().routes)
      ++reports_[static_cast<size_t>(route.expert)].tokens;
    std::vector<int32_t> place(reports_.size());
    for (const bool trained : {true, false}) {
      for (size_t i = 0; i < reports_.size(); ++i) {
        reports_[i].trained = reports_[i].tokens >= hidden_;
        if (reports_[i].trained != trained) continue;
        place[i] = static_cast<int32_t>(order_.size());
        order_.push_back(i);
      }
      if (trained) trained_ = order_.size();
    }
    captured_.renumber(place);
  }

  void make_groups() {
    int64_t together = 0;
    for (size_t i = 0; i < order_.size(); ++i) {
      const WeightRef& gate = weights_.ref(id(i, Role::kGate));
      const int64_t size = 3 * gate.rows * gate.cols;
      const bool joins = !groups_.empty() && i < trained_ && together + size <= kWeightsTogether;
      if (!joins) groups_.push_back({i, i, i < trained_});
      together = joins ? together + size : size;
      groups_.back().end = i + 1;
    }
  }

  MatrixId id(size_t number, Role role) const {
    const ExpertRecoverReport& report = reports_[order_[number]];
    return {report.part, report.expert, role};
  }

  Status load(const Group& group, bool dense, std::vector<ExpertFloats>& out) const {
    for (size_t i = group.begin; i < group.end; ++i) {
      ExpertFloats& expert = out.emplace_back();
      for (const Role role : kRoles) {
        Result<std::vector<float>> values = dense ? weights_.dense(id(i, role)) : current_(id(i, role));
        if (!values.is_ok()) return values.status();
        expert[static_cast<size_t>(role)] = std::move(values.value());
      }
    }
    return Status::ok();
  }

  Result<double> add(const std::vector<ExpertFloats>& experts, const Group& group, float sign, HiddenFile& sums) const {
    return captured_.add_outputs(pool_, experts, static_cast<int32_t>(group.begin), sign, sums, cancel_);
  }

  // Completes the layer's output by what the dense experts give, and compares with the dense model's.
  Status aim(const RecoverLayerRequest& request, float share) {
    for (const Group& group : groups_) {
      std::vector<ExpertFloats> dense;
      ESPALIER_TRY(load(group, true, dense));
      const Result<double> added = add(dense, group, 1, captured_.output());
      if (!added.is_ok()) return added.status();
    }
    const Result<HiddenFile> dense_output = HiddenFile::open_for_reading(request.dense, hidden_);
    if (!dense_output.is_ok()) return dense_output.status();
    return captured_.aim_at(dense_output.value(), request.first_dense, share);
  }

  Result<LogitsLoss> logits_loss(const RecoverLayerRequest& request, float norm_epsilon) const {
    Result<std::vector<float>> norm = load_vector(request.final_norm);
    if (!norm.is_ok()) return norm.status();
    Result<HostMatrix> head = HostMatrix::load(request.head);
    if (!head.is_ok()) return head.status();
    return LogitsLoss::create(captured_.output(), std::move(norm.value()), norm_epsilon, head.value().to_floats());
  }

  Status train(const Group& group, const std::vector<ExpertFloats>& dense, std::vector<ExpertFloats>& now,
               const RecoveryLoss& loss, int64_t held_out, const RecoverOptions& options, const Progress& progress) {
    const auto begin = static_cast<int64_t>(group.begin);
    const auto size = static_cast<int64_t>(group.end - group.begin);
    const auto told = [&](int64_t done, int64_t total) {
      const int64_t share = (kAllShares - kRunShare) * (begin * total + size * done);
      if (progress) progress(kRunShare + share / (total * static_cast<int64_t>(trained_)), kAllShares);
    };
    const RecoverRequest training{.routed = &captured_.routed(),
                                  .first_expert = static_cast<int32_t>(group.begin),
                                  .input = &captured_.inputs(),
                                  .goal = &captured_.goal(),
                                  .hidden = hidden_,
                                  .loss = &loss,
                                  .held_out = held_out};
    const Result<RecoverReport> report = recover_experts(pool_, training, dense, now, options, told, cancel_);
    if (!report.is_ok()) return report.status();
    for (size_t i = group.begin; i < group.end; ++i) {
      reports_[order_[i]].report = report.value();
      for (const Role role : kRoles) {
        ESPALIER_TRY(replace_(id(i, role), now[i - group.begin][static_cast<size_t>(role)]));
      }
    }
    return Status::ok();
  }

  ThreadPool& pool_;
  const ExpertWeights& weights_;
  int64_t hidden_;
  CapturedLayer& captured_;
  std::vector<ExpertRecoverReport>& reports_;
  Current current_;
  Replace replace_;
  const std::atomic<bool>* cancel_ = nullptr;
  std::vector<size_t> order_;  // the report of each number
  size_t trained_ = 0;
  std::vector<Group> groups_;
};

}  // namespace

Result<std::vector<ExpertRecoverReport>> LayerPruner::recover(const RecoverLayerRequest& request,
                                                              const Progress& progress,
                                                              const std::atomic<bool>* cancel) {
  std::vector<ExpertRecoverReport> reports;
  std::vector<int32_t> first_expert;
  for (int part = 0; part < weights_.parts(); ++part) {
    first_expert.push_back(static_cast<int32_t>(reports.size()));
    for (int e = 0; e < weights_.experts(part); ++e) reports.push_back({.part = part, .expert = e, .report = {}});
  }
  Result<std::unique_ptr<CapturedLayer>> created = CapturedLayer::create(request.scratch, hidden_, first_expert);
  if (!created.is_ok()) return created.status();
  CapturedLayer& captured = *created.value();
  const auto end_batch = [&](int64_t first, int64_t rows, const float* states) {
    return captured.end_batch(first, rows, states);
  };
  const auto told = [&](int64_t done, int64_t total) {
    if (progress) progress(kRunShare * done / total, kAllShares);
  };
  ESPALIER_TRY(run(request.input, 0, request.lengths, {.observer = &captured}, end_batch, told, cancel));
  if (!captured.finite()) return reports;
  RecoverOptions options = request.options;
  options.gradual = options.gradual && !grouped_zeros_;
  LayerRecovery recovery(
      *pool_, weights_, hidden_, captured, reports, [this](const MatrixId& id) { return current(id); },
      [this](const MatrixId& id, std::vector<float>& values) { return replace(id, values); });
  ESPALIER_TRY(recovery.run(request, options, norm_epsilon_, progress, cancel));
  return reports;
}

}  // namespace espalier
