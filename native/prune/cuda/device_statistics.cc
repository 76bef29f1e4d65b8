#include "prune/cuda/device_statistics.h"

#include <algorithm>

namespace espalier::cuda {
namespace {

Status zeros(int64_t bytes, DeviceMemory& out, cudaStream_t stream) {
  Result<DeviceMemory> memory = DeviceMemory::allocate(bytes);
  if (!memory.is_ok()) {
    return Status(memory.status().code(), "statistics of a layer's experts: " + memory.status().message() +
                                              "; prune on the CPU (device: cpu), or by a method without Gram matrices");
  }
  out = std::move(memory.value());
  return to_status(cudaMemsetAsync(out.data(), 0, static_cast<size_t>(bytes), stream), "cudaMemsetAsync");
}

}  // namespace

Result<std::unique_ptr<DeviceStatistics>> DeviceStatistics::create(int device, ThreadPool& pool, cudaStream_t stream,
                                                                   std::vector<FeedForwardPart>& parts, int64_t hidden,
                                                                   const StatisticsRequest& request) {
  std::unique_ptr<DeviceStatistics> made(new DeviceStatistics(device, pool, stream, request));
  int64_t experts = 0;
  for (FeedForwardPart& from : parts) {
    Part& part = made->parts_.emplace_back();
    part.first_expert = experts;
    if (!from.is_routed()) continue;
    for (const Mlp& mlp : from.experts()) part.widths.push_back(mlp.width());
    experts += static_cast<int64_t>(part.widths.size());
    part.tokens.assign(part.widths.size(), 0);
    ESPALIER_TRY(made->allocate(part.input, hidden, part.widths.size()));
    ESPALIER_TRY(
        made->allocate(part.activation, *std::max_element(part.widths.begin(), part.widths.end()), part.widths.size()));
  }
  ESPALIER_TRY(made->group_.ensure(sizeof(GemmGroup)));
  return Result<std::unique_ptr<DeviceStatistics>>(std::move(made));
}

Status DeviceStatistics::allocate(Site& site, int64_t width, size_t experts) const {
  site.width = width;
  ESPALIER_TRY(zeros(static_cast<int64_t>(experts * sizeof(double)) * width, site.squares, stream_));
  if (!request_.gram) return Status::ok();
  site.grams.resize(experts);
  for (DeviceMemory& gram : site.grams) {
    ESPALIER_TRY(zeros(width * width * static_cast<int64_t>(sizeof(float)), gram, stream_));
  }
  return Status::ok();
}

Status DeviceStatistics::add(int part, const ExpertRows& rows) {
  Part& own = parts_[static_cast<size_t>(part)];
  for (size_t e = 0; e < own.tokens.size(); ++e) own.tokens[e] += (*rows.on_host)[e].rows;
  ESPALIER_TRY(add(own.input, rows, rows.input, rows.tokens));
  return add(own.activation, rows, rows.activation, nullptr);
}

Status DeviceStatistics::add(Site& site, const ExpertRows& rows, const float* x, const int32_t* from) {
  const float* gates = request_.router_weighted ? rows.gates : nullptr;
  ESPALIER_TRY(add_squares({.groups = rows.groups,
                            .group_count = static_cast<int32_t>(rows.on_host->size()),
                            .x = x,
                            .rows = from,
                            .gates = gates,
                            .cols = site.width,
                            .sums = site.squares.as<double>()},
                           stream_));
  for (size_t e = 0; e < site.grams.size(); ++e) ESPALIER_TRY(add_gram(site, e, (*rows.on_host)[e], x, from, gates));
  return Status::ok();
}

Status DeviceStatistics::add_gram(const Site& site, size_t expert, const GemmGroup& rows, const float* x,
                                  const int32_t* from, const float* gates) {
  if (rows.rows == 0) return Status::ok();
  const PartRows transposed{nullptr, kGemmParts, part_stride(rows.rows)};
  const int64_t bytes = site.width * transposed.parts * transposed.stride * 2;
  if (bytes > transposed_.bytes()) {
    // What still reads the old one ends first.
    ESPALIER_CUDA_TRY(cudaStreamSynchronize(stream_));
    ESPALIER_TRY(transposed_.ensure(bytes));
  }
  PartRows out = transposed;
  out.data = transposed_.as<uint16_t>();
  ESPALIER_TRY(transpose_rows({.x = x,
                               .from = from,
                               .gates = gates,
                               .first_row = rows.first_row,
                               .rows = rows.rows,
                               .cols = site.width,
                               .out = out},
                              stream_));
  std::vector<GemmGroup> group = {{.weights = out.data, .first_row = 0, .rows = static_cast<int32_t>(site.width)}};
  const int32_t tiles = place_tiles(group, site.width);
  ESPALIER_CUDA_TRY(cudaMemcpyAsync(group_.data(), group.data(), sizeof(GemmGroup), cudaMemcpyHostToDevice, stream_));
  return gemm({.groups = group_.as<GemmGroup>(),
               .group_count = 1,
               .tiles = tiles,
               .x = out.data,
               .depth = out.stride,
               .cols = static_cast<int32_t>(site.width),
               .weight_parts = kGemmParts,
               .y = site.grams[expert].as<float>(),
               .accumulate = true,
               .upper = true},
              stream_);
}

Result<SiteStatistics> DeviceStatistics::fetch(const DeviceMemory* gram, int64_t site_width, int64_t width,
                                               int64_t tokens, std::vector<double> squares) const {
  if (gram == nullptr) return SiteStatistics::of_sums(pool_, tokens, std::move(squares), nullptr);
  AlignedBuffer<float> host;
  host.reset_uninitialised(static_cast<size_t>(width * width));
  if (host.data() == nullptr) {
    return Status(Code::kOutOfMemory, "no memory for a Gram matrix of " + std::to_string(width) + " columns");
  }
  ESPALIER_CUDA_TRY(cudaSetDevice(device_));
  const auto row = static_cast<size_t>(width) * sizeof(float);
  ESPALIER_CUDA_TRY(cudaMemcpy2D(host.data(), row, gram->data(), static_cast<size_t>(site_width) * sizeof(float), row,
                                 static_cast<size_t>(width), cudaMemcpyDeviceToHost));
  return SiteStatistics::of_sums(pool_, tokens, std::move(squares), host.data());
}

Status DeviceStatistics::finish() {
  ESPALIER_CUDA_TRY(cudaSetDevice(device_));
  ESPALIER_CUDA_TRY(cudaStreamSynchronize(stream_));
  for (Part& part : parts_) {
    for (size_t e = 0; e < part.widths.size(); ++e) {
      const auto squares_of = [&](const Site& site, int64_t width) -> Result<SiteStatistics> {
        std::vector<double> squares(static_cast<size_t>(width));
        ESPALIER_CUDA_TRY(cudaMemcpy(squares.data(), site.squares.as<double>() + static_cast<int64_t>(e) * site.width,
                                     squares.size() * sizeof(double), cudaMemcpyDeviceToHost));
        return fetch(nullptr, site.width, width, part.tokens[e], std::move(squares));
      };
      Result<SiteStatistics> input = squares_of(part.input, part.input.width);
      if (!input.is_ok()) return input.status();
      Result<SiteStatistics> activation = squares_of(part.activation, part.widths[e]);
      if (!activation.is_ok()) return activation.status();
      lengths_.push_back({std::move(input.value()), std::move(activation.value())});
    }
    if (request_.gram && request_.pooled && !part.widths.empty()) ESPALIER_TRY(pool_inputs(part));
  }
  return Status::ok();
}

// Σ over experts of g²·x·xᵀ is the sum of what the experts have.
Status DeviceStatistics::pool_inputs(Part& part) {
  const int64_t width = part.input.width;
  DeviceMemory sum;
  ESPALIER_TRY(zeros(width * width * static_cast<int64_t>(sizeof(float)), sum, stream_));
  std::vector<double> squares(static_cast<size_t>(width), 0.0);
  int64_t tokens = 0;
  for (size_t e = 0; e < part.widths.size(); ++e) {
    ESPALIER_TRY(add_floats(sum.as<float>(), part.input.grams[e].as<float>(), width * width, stream_));
    const std::vector<double>& own = lengths_[static_cast<size_t>(part.first_expert) + e].input.squared_norms();
    for (size_t j = 0; j < squares.size(); ++j) squares[j] += own[j];
    tokens += part.tokens[e];
  }
  ESPALIER_CUDA_TRY(cudaStreamSynchronize(stream_));
  Result<SiteStatistics> pooled = fetch(&sum, width, width, tokens, std::move(squares));
  if (!pooled.is_ok()) return pooled.status();
  part.pooled = std::move(pooled.value());
  part.pooled_gram = std::move(sum);
  return Status::ok();
}

const SiteStatistics* DeviceStatistics::pooled(int part) {
  std::optional<SiteStatistics>& pooled = parts_[static_cast<size_t>(part)].pooled;
  return pooled ? &*pooled : nullptr;
}

bool DeviceStatistics::prepares(const MethodPlan& plan) const { return request_.gram && DeviceWalk::takes(plan); }

Result<PreparedSite> DeviceStatistics::prepare(const MethodPlan& plan, const MatrixId& id) {
  ESPALIER_TRY(check_plan(plan));
  ESPALIER_CUDA_TRY(cudaSetDevice(device_));
  Part& part = parts_[static_cast<size_t>(id.part)];
  const auto e = static_cast<size_t>(id.expert);
  const bool is_down = id.role == Role::kDown;
  Site& site = is_down ? part.activation : part.input;
  const SiteStatistics& lengths =
      is_down ? this->lengths(id.part, id.expert).activation : this->lengths(id.part, id.expert).input;
  const DeviceMemory gram = std::move(site.grams[e]);
  PreparedSite prepared;
  const Result<bool> nothing = says_nothing(lengths.tokens(), lengths.squared_norms());
  if (!nothing.is_ok()) return nothing.status();
  prepared.fallback = nothing.value();
  if (prepared.fallback) return Result<PreparedSite>(std::move(prepared));
  std::vector<float> diagonal(static_cast<size_t>(lengths.width()));
  ESPALIER_CUDA_TRY(cudaMemcpy2D(diagonal.data(), sizeof(float), gram.data(),
                                 static_cast<size_t>(site.width + 1) * sizeof(float), sizeof(float), diagonal.size(),
                                 cudaMemcpyDeviceToHost));
  // Inputs so small that their squares are zero in float32 say as little as none.
  prepared.fallback = std::all_of(diagonal.begin(), diagonal.end(), [](float d) { return d == 0; });
  if (prepared.fallback) return Result<PreparedSite>(std::move(prepared));
  const bool is_pooled = !is_down && plan.shrinkage > 0 && part.pooled;
  std::vector<float> pooled_diagonal;
  for (int64_t j = 0; is_pooled && j < lengths.width(); ++j) pooled_diagonal.push_back(part.pooled->gram(j, j));
  HessianScale scale = HessianScale::of(diagonal, pooled_diagonal, lengths.tokens(), plan.shrinkage);
  ESPALIER_TRY(check_usable(scale));
  HessianTask task{.gram = gram.as<float>(),
                   .stride = site.width,
                   .pooled = is_pooled ? part.pooled_gram.as<float>() : nullptr,
                   .width = lengths.width(),
                   .scale = scale.own,
                   .pooled_scale = scale.pooled,
                   .diagonal = scale.diagonal};
  const Result<double> damping = enough_damping(plan.damping, [&](double tried) {
    task.damping = tried;
    return walk_->factor(task);
  });
  if (!damping.is_ok()) return damping.status();
  walk_->set_dead(scale.dead);
  prepared.factor.width = lengths.width();
  prepared.factor.dead = std::move(scale.dead);
  prepared.factor.damping = damping.value();
  prepared.walk = walk_;
  prepared.shrunk = scale.shrunk;
  prepared.starved = lengths.tokens() < lengths.width();
  return Result<PreparedSite>(std::move(prepared));
}

Result<ExpertStatistics> DeviceStatistics::take(int part, int expert) {
  ExpertStatistics& lengths = lengths_[number(part, expert)];
  if (!request_.gram) return std::move(lengths);
  Part& own = parts_[static_cast<size_t>(part)];
  const auto e = static_cast<size_t>(expert);
  Result<SiteStatistics> input =
      fetch(&own.input.grams[e], own.input.width, own.input.width, own.tokens[e], lengths.input.squared_norms());
  if (!input.is_ok()) return input.status();
  Result<SiteStatistics> activation = fetch(&own.activation.grams[e], own.activation.width, own.widths[e],
                                            own.tokens[e], lengths.activation.squared_norms());
  if (!activation.is_ok()) return activation.status();
  own.input.grams[e] = DeviceMemory();
  own.activation.grams[e] = DeviceMemory();
  return ExpertStatistics{std::move(input.value()), std::move(activation.value())};
}

}  // namespace espalier::cuda
