#include "prune/recover.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "prune/gradual_mask.h"

namespace espalier {
namespace {

constexpr double kMeanDecay = 0.9;
constexpr double kSquareDecay = 0.999;
constexpr double kEpsilon = 1e-10;
constexpr double kWarmUp = 0.02;  // of all steps
constexpr double kRamp = 0.6;     // of all steps: then all zeros are chosen
constexpr int64_t kChoices = 50;  // times in a run that zeros are added
constexpr int64_t kLeastStepsToChoose = 2 * kChoices;

// Fisher and Yates with numbers that every standard library draws alike.
void shuffle(std::vector<int64_t>& values, std::mt19937_64& random) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random() % i]);
}

AdamStep adam_step(const RecoverOptions& options, int64_t step, int64_t steps) {
  const double t = static_cast<double>(step) + 1;
  const double all = static_cast<double>(steps);
  const double warm = std::min(1.0, t / (kWarmUp * all + 1));
  const double cosine = 0.5 * (1 + std::cos(std::acos(-1.0) * static_cast<double>(step) / all));
  const double square_bias = std::sqrt(1 - std::pow(kSquareDecay, t));
  return {
      .mean_decay = kMeanDecay,
      .square_decay = kSquareDecay,
      .rate = static_cast<float>(options.learning_rate * warm * cosine * square_bias / (1 - std::pow(kMeanDecay, t))),
      .epsilon = static_cast<float>(kEpsilon * square_bias)};
}

class Recovery {
 public:
  Recovery(ThreadPool& pool, const RecoverRequest& request, const RecoverOptions& options,
           const std::function<void(int64_t, int64_t)>& progress, const std::atomic<bool>* cancel)
      : request_(request),
        options_(options),
        progress_(progress),
        cancel_(cancel),
        batch_(pool, experts_, request.first_expert, *request.routed, *request.input, *request.goal, request.hidden) {
    const int64_t trained = request.routed->count() - request.held_out;
    order_.resize(static_cast<size_t>(trained));
    std::iota(order_.begin(), order_.end(), 0);
    held_out_.resize(static_cast<size_t>(request.held_out));
    std::iota(held_out_.begin(), held_out_.end(), trained);
    size_ = std::min(options.batch, std::max<int64_t>(trained, 1));
    steps_per_epoch_ = trained / size_;
  }

  Result<RecoverReport> run(const std::vector<ExpertFloats>& dense, std::vector<ExpertFloats>& pruned) {
    start_from(pruned, dense);
    RecoverReport report;
    if (held_out_.empty() || steps_per_epoch_ == 0) return report;
    const Result<double> before = held_out_loss();
    if (!before.is_ok()) return before.status();
    report.before = report.after = before.value();

    const int64_t steps = steps_per_epoch_ * options_.epochs;
    for (const ExpertTrainer& expert : experts_) last_zeros_.push_back(zeros_of(expert));
    if (options_.gradual && steps >= kLeastStepsToChoose) {
      choosing_ = true;
      start_from(dense, dense);
    }
    std::mt19937_64 random(options_.seed);
    for (int epoch = 0; epoch < options_.epochs; ++epoch) {
      shuffle(order_, random);
      for (int64_t s = 0; s < steps_per_epoch_; ++s) {
        ESPALIER_TRY(train(epoch * steps_per_epoch_ + s, steps));
        if (progress_) progress_(epoch * steps_per_epoch_ + s + 1, steps);
      }
      if (choosing_) continue;
      const Result<double> after = held_out_loss();
      if (!after.is_ok()) return after.status();
      if (!(after.value() < report.after)) continue;
      report.after = after.value();
      report.epoch = epoch + 1;
      for (size_t e = 0; e < experts_.size(); ++e) {
        for (const Role role : kRoles) {
          const auto r = static_cast<size_t>(role);
          pruned[e][r] = experts_[e].matrices()[r].weight;
        }
      }
    }
    return report;
  }

 private:
  void start_from(const std::vector<ExpertFloats>& weights, const std::vector<ExpertFloats>& dense) {
    experts_.clear();
    sensitivities_.clear();
    for (size_t e = 0; e < weights.size(); ++e) {
      experts_.push_back(trainer_of(weights[e], dense[e], request_.hidden));
      sensitivities_.emplace_back(request_.hidden, experts_.back().width());
    }
  }

  Status check_cancelled() const {
    if (cancel_ != nullptr && cancel_->load(std::memory_order_relaxed)) return {Code::kAborted, "stopped"};
    return Status::ok();
  }

  Status train(int64_t step, int64_t steps) {
    ESPALIER_TRY(check_cancelled());
    if (choosing_ && step > 0 && step % (steps / kChoices) == 0)
      choose(static_cast<double>(step) / static_cast<double>(steps));
    const auto tokens =
        std::span(order_).subspan(static_cast<size_t>(step % steps_per_epoch_ * size_), static_cast<size_t>(size_));
    ESPALIER_TRY(batch_.forward(tokens));
    ESPALIER_TRY(batch_.backward(*request_.loss));
    if (choosing_) batch_.measure(sensitivities_);
    batch_.step(adam_step(options_, step, steps));
    return Status::ok();
  }

  void choose(double done) {
    for (size_t e = 0; e < experts_.size(); ++e) {
      drop_least(experts_[e], sensitivities_[e], scheduled_zeros(last_zeros_[e], done / kRamp));
      sensitivities_[e] = Sensitivity(request_.hidden, experts_[e].width());
    }
    choosing_ = done < kRamp;
  }

  Result<double> held_out_loss() {
    double sum = 0;
    for (size_t begin = 0; begin < held_out_.size(); begin += static_cast<size_t>(size_)) {
      ESPALIER_TRY(check_cancelled());
      const size_t count = std::min(static_cast<size_t>(size_), held_out_.size() - begin);
      ESPALIER_TRY(batch_.forward(std::span(held_out_).subspan(begin, count)));
      const Result<double> part = batch_.loss(*request_.loss);
      if (!part.is_ok()) return part.status();
      sum += part.value();
    }
    return sum / static_cast<double>(held_out_.size());
  }

  const RecoverRequest& request_;
  const RecoverOptions& options_;
  const std::function<void(int64_t, int64_t)>& progress_;
  const std::atomic<bool>* cancel_;
  std::vector<ExpertTrainer> experts_;
  std::vector<Sensitivity> sensitivities_;
  RoutedBatch batch_;
  std::vector<int64_t> order_, held_out_;  // tokens
  int64_t size_ = 0;                       // of a batch
  int64_t steps_per_epoch_ = 0;
  bool choosing_ = false;
  std::vector<int64_t> last_zeros_;  // of each expert
};

}  // namespace

ExpertTrainer trainer_of(const ExpertFloats& weights, const ExpertFloats& dense, int64_t hidden) {
  const auto make = [&](Role role) {
    const auto r = static_cast<size_t>(role);
    double squares = 0;
    for (const float w : dense[r]) squares += static_cast<double>(w) * w;
    const auto size = static_cast<int64_t>(dense[r].size());
    const int64_t rows = role == Role::kDown ? hidden : size / hidden;
    const auto rate = static_cast<float>(std::sqrt(squares / static_cast<double>(size)));
    return TrainedMatrix(rows, size / rows, rate, weights[r]);
  };
  return ExpertTrainer({make(Role::kGate), make(Role::kUp), make(Role::kDown)});
}

Result<RecoverReport> recover_experts(ThreadPool& pool, const RecoverRequest& request,
                                      const std::vector<ExpertFloats>& dense, std::vector<ExpertFloats>& pruned,
                                      const RecoverOptions& options,
                                      const std::function<void(int64_t, int64_t)>& progress,
                                      const std::atomic<bool>* cancel) {
  return Recovery(pool, request, options, progress, cancel).run(dense, pruned);
}

}  // namespace espalier
