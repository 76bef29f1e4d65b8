// For tests of CUDA kernels: poisoned arrays on the device, random numbers, and a message where there is no device.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/dtype.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/parts.h"
#include "test_main.h"

namespace espalier::test {

inline std::mt19937& generator() {
  static std::mt19937 random(fresh_seed());
  return random;
}
inline std::vector<float> floats(size_t count, float scale = 1) { return normal_floats(generator(), count, scale); }
inline int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator()); }

inline void require(const Status& status) { REQUIRE_MESSAGE(status.is_ok(), status.message()); }

// Whether there is a GPU; says why not.
inline bool has_gpu() {
  const Status status = cuda::check_device(0);
  if (!status.is_ok()) MESSAGE("skipped: " << status.message());
  return status.is_ok();
}

// Whether it is the one of native/test/emulated, which takes minutes for what a real one does in seconds.
inline bool is_emulated() {
  const cuda::DeviceSurvey survey = cuda::survey_devices();
  return !survey.devices.empty() && survey.devices[0].name == "emulated GPU";
}

// All cases; for an emulated GPU so many of them, each time other ones.
template <class Cases>
auto some_of(const Cases& cases, size_t few) {
  std::vector<std::decay_t<decltype(*std::begin(cases))>> some(std::begin(cases), std::end(cases));
  if (is_emulated() && some.size() > few) {
    std::shuffle(some.begin(), some.end(), generator());
    some.erase(some.begin() + static_cast<ptrdiff_t>(few), some.end());
  }
  return some;
}
template <class T>
std::vector<T> some_of(std::initializer_list<T> cases, size_t few) {
  return some_of(std::vector<T>(cases), few);
}

template <class T>
class OnGpu {
 public:
  // Every bit set: a NaN in all floating-point types, −1 in the others.
  explicit OnGpu(size_t size) : size_(size) {
    auto memory = cuda::DeviceMemory::allocate(static_cast<int64_t>(size * sizeof(T)));
    REQUIRE_MESSAGE(memory.is_ok(), memory.status().message());
    memory_ = std::move(memory.value());
    poison();
  }
  explicit OnGpu(const std::vector<T>& host) : OnGpu(host.size()) {
    REQUIRE(cudaMemcpy(memory_.data(), host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
  }

  void poison() const { REQUIRE(cudaMemset(memory_.data(), 0xff, size_ * sizeof(T)) == cudaSuccess); }
  T* get() const { return memory_.as<T>(); }
  // After all kernels have ended.
  std::vector<T> host() const {
    std::vector<T> values(size_);
    const cudaError_t ran = cudaDeviceSynchronize();
    REQUIRE_MESSAGE(ran == cudaSuccess, cudaGetErrorString(ran));
    REQUIRE(cudaMemcpy(values.data(), memory_.data(), size_ * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return values;
  }

 private:
  cuda::DeviceMemory memory_;
  size_t size_;
};

// ‖found − wanted‖ / ‖wanted‖; NaN where something was not written.
template <class Found>
double relative_error(const Found& found, const std::vector<double>& wanted) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double d = static_cast<double>(found[i]) - wanted[i];
    difference += d * d;
    norm += wanted[i] * wanted[i];
  }
  return std::sqrt(difference / norm);
}

// The numbers that rows of bf16 parts stand for: [rows][width]; NaN where the padding is not zero.
inline std::vector<double> join_parts(const std::vector<uint16_t>& bits, int64_t rows, int64_t width, int parts) {
  const int64_t stride = cuda::part_stride(width);
  std::vector<double> out;
  for (int64_t row = 0; row < rows; ++row) {
    double padding = 0;
    for (int64_t i = 0; i < stride; ++i) {
      double value = 0;
      for (int p = 0; p < parts; ++p) {
        value += static_cast<double>(bf16_to_float(bits[static_cast<size_t>((row * parts + p) * stride + i)]));
      }
      if (i < width) {
        out.push_back(value);
      } else {
        padding += std::abs(value);
      }
    }
    if (padding != 0) out.back() = NAN;
  }
  return out;
}

// Rows of floats as parts.
inline std::vector<uint16_t> split_parts(const std::vector<float>& values, int64_t rows, int64_t width, int parts) {
  const int64_t stride = cuda::part_stride(width);
  std::vector<uint16_t> bits(static_cast<size_t>(rows * parts * stride), 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      float left = values[static_cast<size_t>(row * width + i)];
      for (int p = 0; p < parts; ++p) {
        const uint16_t rounded = float_to_bf16(left);
        bits[static_cast<size_t>((row * parts + p) * stride + i)] = rounded;
        left -= bf16_to_float(rounded);
      }
    }
  }
  return bits;
}

// What two parts keep of a float, and one.
inline double parts_error(int parts) { return parts == 2 ? 1e-5 : 3e-3; }

}  // namespace espalier::test
