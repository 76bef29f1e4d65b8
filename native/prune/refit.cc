#include "prune/refit.h"

#include <array>
#include <atomic>
#include <string>

namespace espalier {
namespace {

// kPanel rows, each with a system of its own.
class Tile {
 public:
  explicit Tile(const ScaledHessian& hessian) : hessian_(hessian), size_(tile_size(hessian.width)) {
    for (AlignedBuffer<float>* buffer : {&x_, &residual_, &direction_, &product_}) {
      buffer->reset(static_cast<size_t>(size_));
    }
    support_.reset(static_cast<size_t>(size_));
  }

  bool has_memory() const {
    return x_.size() > 0 && residual_.size() > 0 && direction_.size() > 0 && product_.size() > 0 && support_.size() > 0;
  }

  void solve(int64_t steps, const float* target, float* weights, int64_t count) {
    hessian_.load_tile(weights, count, x_.data());
    hessian_.load_tile(target, count, direction_.data());
    for (size_t i = 0; i < x_.size(); ++i) {
      support_[i] = x_[i] != 0.0f ? 1 : 0;
      direction_[i] -= x_[i];
    }
    hessian_.multiply(direction_.data(), residual_.data());
    for (size_t i = 0; i < x_.size(); ++i) {
      residual_[i] = support_[i] != 0 ? residual_[i] : 0.0f;
      direction_[i] = residual_[i];
    }
    Row squares = dot(residual_, residual_);
    for (int64_t step = 0; step < steps; ++step) {
      hessian_.multiply(direction_.data(), product_.data());
      const Row curvature = dot(direction_, product_);
      Row length;
      for (size_t r = 0; r < kPanel; ++r) length[r] = curvature[r] > 0 ? squares[r] / curvature[r] : 0.0f;
      each([&](size_t i, size_t r) {
        x_[i] += length[r] * direction_[i];
        residual_[i] -= support_[i] != 0 ? length[r] * product_[i] : 0.0f;
      });
      const Row after = dot(residual_, residual_);
      Row carry;
      for (size_t r = 0; r < kPanel; ++r) carry[r] = squares[r] > 0 ? after[r] / squares[r] : 0.0f;
      each([&](size_t i, size_t r) { direction_[i] = residual_[i] + carry[r] * direction_[i]; });
      squares = after;
    }
    hessian_.store_tile(x_.data(), count, weights);
  }

 private:
  using Row = std::array<float, kPanel>;

  template <class Body>
  void each(const Body& body) const {
    for (size_t first = 0; first < static_cast<size_t>(size_); first += kPanel) {
      for (size_t r = 0; r < kPanel; ++r) body(first + r, r);
    }
  }

  Row dot(const AlignedBuffer<float>& a, const AlignedBuffer<float>& b) const {
    Row sum{};
    each([&](size_t i, size_t r) { sum[r] += a[i] * b[i]; });
    return sum;
  }

  const ScaledHessian& hessian_;
  int64_t size_;
  AlignedBuffer<float> x_;
  AlignedBuffer<float> residual_;
  AlignedBuffer<float> direction_;
  AlignedBuffer<float> product_;
  AlignedBuffer<uint8_t> support_;
};

}  // namespace

Status refit(ThreadPool& pool, const ScaledHessian& hessian, int64_t steps, const float* target, float* weights,
             int64_t rows) {
  std::atomic<bool> enough{true};
  const int64_t n = hessian.width;
  pool.parallel_for(panel_count(rows), 1, [&](int64_t begin, int64_t end) {
    Tile tile(hessian);
    if (!tile.has_memory()) {
      enough = false;
      return;
    }
    for (int64_t t = begin; t < end; ++t) {
      tile.solve(steps, target + t * kPanel * n, weights + t * kPanel * n, panel_width(rows, t));
    }
  });
  if (enough) return Status::ok();
  return Status(Code::kOutOfMemory, "no memory to refit the weights of a matrix with " + std::to_string(n) +
                                        " input columns: free memory, or use fewer threads");
}

}  // namespace espalier
