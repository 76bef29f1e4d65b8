#include "prune/captured_layer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace espalier {
namespace {

constexpr int64_t kBatchTokens = 4096;

}  // namespace

Result<std::unique_ptr<CapturedLayer>> CapturedLayer::create(const std::string& scratch, int64_t hidden,
                                                             std::vector<int32_t> first_expert) {
  Result<HiddenFile> inputs = HiddenFile::create_temporary(scratch + ".inputs", hidden);
  if (!inputs.is_ok()) return inputs.status();
  Result<HiddenFile> goal = HiddenFile::create_temporary(scratch + ".goal", hidden);
  if (!goal.is_ok()) return goal.status();
  Result<HiddenFile> output = HiddenFile::create_temporary(scratch + ".output", hidden);
  if (!output.is_ok()) return output.status();
  return std::unique_ptr<CapturedLayer>(new CapturedLayer(hidden, std::move(first_expert), std::move(inputs.value()),
                                                          std::move(goal.value()), std::move(output.value())));
}

void CapturedLayer::on_expert(const ExpertBatch& batch) {
  const int32_t expert = first_expert_[static_cast<size_t>(batch.part)] + batch.expert;
  for (int64_t r = 0; r < batch.rows; ++r) {
    const auto token = static_cast<size_t>(batch.tokens[r]);
    if (routes_.size() <= token) {
      routes_.resize(token + 1);
      input_rows_.resize((token + 1) * static_cast<size_t>(hidden_));
      output_rows_.resize((token + 1) * static_cast<size_t>(hidden_));
    }
    routes_[token].push_back({expert, batch.gates[r]});
    const float* input = batch.input + r * hidden_;
    const float* output = batch.output + r * hidden_;
    float* input_row = input_rows_.data() + token * static_cast<size_t>(hidden_);
    float* output_row = output_rows_.data() + token * static_cast<size_t>(hidden_);
    for (int64_t k = 0; k < hidden_; ++k) {
      input_row[k] = input[k];
      output_row[k] += batch.gates[r] * output[k];
      finite_ = finite_ && std::isfinite(input[k]) && std::isfinite(output[k]);
    }
  }
}

Status CapturedLayer::end_batch(int64_t first, int64_t rows, const float* states) {
  const auto size = static_cast<size_t>(rows * hidden_);
  routes_.resize(static_cast<size_t>(rows));
  input_rows_.resize(size);
  output_rows_.resize(size);
  for (const std::vector<RoutedTokens::Route>& routes : routes_) {
    routed_.routes.insert(routed_.routes.end(), routes.begin(), routes.end());
    routed_.first.push_back(static_cast<int64_t>(routed_.routes.size()));
  }
  ESPALIER_TRY(inputs_.write(first, rows, input_rows_.data()));
  for (size_t i = 0; i < size; ++i) output_rows_[i] = states[i] - output_rows_[i];
  ESPALIER_TRY(output_.write(first, rows, output_rows_.data()));
  std::fill(output_rows_.begin(), output_rows_.end(), 0.0f);
  ESPALIER_TRY(goal_.write(first, rows, output_rows_.data()));
  routes_.clear();
  input_rows_.clear();
  output_rows_.clear();
  return Status::ok();
}

void CapturedLayer::renumber(const std::vector<int32_t>& place) {
  for (RoutedTokens::Route& route : routed_.routes) route.expert = place[static_cast<size_t>(route.expert)];
}

Status CapturedLayer::aim_at(const HiddenFile& dense, int64_t first, float share) {
  std::vector<float> wanted, given, goal;
  for (int64_t begin = 0; begin < routed_.count(); begin += kBatchTokens) {
    const int64_t count = std::min(kBatchTokens, routed_.count() - begin);
    for (std::vector<float>* rows : {&wanted, &given, &goal}) rows->resize(static_cast<size_t>(count * hidden_));
    ESPALIER_TRY(dense.read(first + begin, count, wanted.data()));
    ESPALIER_TRY(output_.read(begin, count, given.data()));
    ESPALIER_TRY(goal_.read(begin, count, goal.data()));
    for (size_t i = 0; i < goal.size(); ++i) goal[i] += share * (wanted[i] - given[i]);
    ESPALIER_TRY(goal_.write(begin, count, goal.data()));
    ESPALIER_TRY(output_.write(begin, count, wanted.data()));
  }
  return Status::ok();
}

Result<double> CapturedLayer::add_outputs(ThreadPool& pool, const std::vector<ExpertFloats>& experts, int32_t first,
                                          float sign, HiddenFile& sums, const std::atomic<bool>* cancel) const {
  std::vector<ExpertTrainer> forward;
  forward.reserve(experts.size());
  for (const ExpertFloats& weights : experts) forward.push_back(trainer_of(weights, weights, hidden_));
  RoutedBatch batch(pool, forward, first, routed_, inputs_, sums, hidden_);
  std::vector<int64_t> tokens;
  std::vector<float> rows, before;
  double squares = 0;
  for (int64_t begin = 0; begin < routed_.count(); begin += kBatchTokens) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return Status(Code::kAborted, "stopped");
    const int64_t count = std::min(kBatchTokens, routed_.count() - begin);
    tokens.resize(static_cast<size_t>(count));
    std::iota(tokens.begin(), tokens.end(), begin);
    ESPALIER_TRY(batch.forward(tokens));
    before.resize(static_cast<size_t>(count * hidden_));
    ESPALIER_TRY(sums.read(begin, count, before.data()));
    rows.resize(before.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const float output = before[i] - batch.missing()[i];
      rows[i] = before[i] + sign * output;
      squares += static_cast<double>(rows[i]) * rows[i];
    }
    ESPALIER_TRY(sums.write(begin, count, rows.data()));
  }
  return squares / static_cast<double>(std::max<int64_t>(routed_.count(), 1));
}

}  // namespace espalier
