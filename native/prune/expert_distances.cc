#include "prune/expert_distances.h"

#include <algorithm>
#include <array>
#include <mutex>

namespace espalier {
namespace {

// Elements of a matrix that are compared at a time: small enough for the caches, large enough to read at full speed.
constexpr int64_t kPiece = 32'768;
constexpr size_t kLanes = 16;

using Matrices = std::vector<const WeightRef*>;

// Σ (w − mean)², in independent lanes so that the loop vectorises.
double squared_distance(const float* values, const float* mean, int64_t count) {
  std::array<float, kLanes> lanes{};
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= count; i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) {
      const float difference = values[i + static_cast<int64_t>(l)] - mean[i + static_cast<int64_t>(l)];
      lanes[l] += difference * difference;
    }
  }
  double sum = 0;
  for (; i < count; ++i) {
    const double difference = static_cast<double>(values[i]) - static_cast<double>(mean[i]);
    sum += difference * difference;
  }
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return sum;
}

// Elements [first, first + count) of one matrix for each member.
class Members {
 public:
  Status open(const Matrices& members, ThreadPool& pool) {
    for (const WeightRef* ref : members) {
      refs_.push_back(ref);
      hosts_.emplace_back();
      if (!ref->is_bitmask()) continue;
      Result<HostMatrix> host = HostMatrix::load(*ref, &pool);
      if (!host.is_ok()) return host.status();
      hosts_.back() = host.value().to_floats();
    }
    return Status::ok();
  }

  Status read(size_t member, int64_t first, int64_t count, std::vector<uint8_t>& bytes, float* out) const {
    if (!hosts_[member].empty()) {
      std::copy_n(hosts_[member].data() + first, count, out);
      return Status::ok();
    }
    const WeightRef& ref = *refs_[member];
    const int64_t size = dtype_bits(ref.dtype) / 8;
    bytes.resize(static_cast<size_t>(count * size));
    ESPALIER_TRY(
        ref.values.file->read(static_cast<uint64_t>(ref.values.offset + first * size), bytes.size(), bytes.data()));
    load_floats(ref.dtype, bytes.data(), 0, count, out);
    return Status::ok();
  }

 private:
  Matrices refs_;
  std::vector<std::vector<float>> hosts_;  // empty where the elements lie in the file as they are
};

Status add_distances(ThreadPool& pool, const Matrices& refs, const std::atomic<bool>* cancel,
                     std::vector<double>& distances) {
  Members members;
  ESPALIER_TRY(members.open(refs, pool));
  const int64_t elements = refs[0]->rows * refs[0]->cols;
  const int64_t pieces = (elements + kPiece - 1) / kPiece;
  std::vector<double> partial(static_cast<size_t>(pieces) * refs.size());
  std::mutex mutex;
  Status failed;
  pool.parallel_for(pieces, 4, [&](int64_t begin, int64_t end) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return;
    std::vector<uint8_t> bytes;
    std::vector<float> values(refs.size() * kPiece);
    std::vector<float> mean(kPiece);
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kPiece;
      const int64_t count = std::min(kPiece, elements - first);
      std::fill(mean.begin(), mean.end(), 0.0f);
      for (size_t m = 0; m < refs.size(); ++m) {
        float* own = values.data() + m * kPiece;
        if (Status status = members.read(m, first, count, bytes, own); !status.is_ok()) {
          const std::lock_guard lock(mutex);
          failed = std::move(status).with_tensor(refs[m]->name);
          return;
        }
        for (int64_t i = 0; i < count; ++i) mean[static_cast<size_t>(i)] += own[i];
      }
      const float share = 1.0f / static_cast<float>(refs.size());
      for (float& value : mean) value *= share;
      for (size_t m = 0; m < refs.size(); ++m) {
        partial[static_cast<size_t>(piece) * refs.size() + m] =
            squared_distance(values.data() + m * kPiece, mean.data(), count);
      }
    }
  });
  if (!failed.is_ok()) return failed;
  if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) return {Code::kAborted, "stopped"};
  for (size_t i = 0; i < partial.size(); ++i) distances[i % refs.size()] += partial[i];
  return Status::ok();
}

}  // namespace

Result<std::vector<std::vector<double>>> distances_to_means(ThreadPool& pool, const std::vector<MlpSpec>& experts,
                                                            const std::vector<std::vector<int32_t>>& clusters,
                                                            const std::atomic<bool>* cancel) {
  std::vector<std::vector<double>> all;
  for (const std::vector<int32_t>& cluster : clusters) {
    std::vector<double>& distances = all.emplace_back(cluster.size(), 0.0);
    if (cluster.size() < 2) continue;
    for (const auto role : {&MlpSpec::gate, &MlpSpec::up, &MlpSpec::down}) {
      Matrices refs;
      for (const int32_t expert : cluster) refs.push_back(&(experts[static_cast<size_t>(expert)].*role));
      ESPALIER_TRY(add_distances(pool, refs, cancel, distances));
    }
  }
  return all;
}

}  // namespace espalier
