#include <algorithm>
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/measure.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/parts.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/read.cuh"
#include "sparse/random_matrix.h"

namespace espalier::cuda {
namespace {

// What a median is of: at least so many samples, and for at least so long.
constexpr int kLeastSamples = 9;
constexpr double kLeastSeconds = 0.1;
// What one sample of a read goes through at least, so that its launches do not count.
constexpr int64_t kLeastRead = int64_t{1} << 30;

// Times work on a stream of its own.
class Timer {
 public:
  static Result<Timer> create() {
    Timer timer;
    Result<Stream> stream = Stream::create();
    if (!stream.is_ok()) return stream.status();
    timer.stream_ = std::move(stream.value());
    for (Event* event : {&timer.begin_, &timer.end_}) {
      Result<Event> made = Event::create(cudaEventDefault);
      if (!made.is_ok()) return made.status();
      *event = std::move(made.value());
    }
    return Result<Timer>(std::move(timer));
  }

  cudaStream_t stream() const { return stream_.get(); }

  // The median of what `start` starts, after two runs that do not count.
  template <class Start>
  Result<ProductTimes::Time> measure(const Start& start) const {
    std::vector<float> millis;
    double total = 0;
    for (int run = -2; run < kLeastSamples || total < kLeastSeconds * 1000; ++run) {
      ESPALIER_CUDA_TRY(cudaEventRecord(begin_.get(), stream()));
      ESPALIER_TRY(start());
      ESPALIER_CUDA_TRY(cudaEventRecord(end_.get(), stream()));
      ESPALIER_TRY(stream_.wait());
      float took = 0;
      ESPALIER_CUDA_TRY(cudaEventElapsedTime(&took, begin_.get(), end_.get()));
      if (run < 0) continue;
      millis.push_back(took);
      total += static_cast<double>(took);
    }
    const auto middle = millis.begin() + static_cast<ptrdiff_t>(millis.size() / 2);
    std::nth_element(millis.begin(), middle, millis.end());
    return ProductTimes::Time{static_cast<double>(*middle) / 1000, static_cast<int>(millis.size())};
  }

 private:
  Stream stream_;
  Event begin_, end_;
};

// Bytes a second of reading `bytes`, a multiple of 16.
Result<double> time_read(const Timer& timer, const void* data, int64_t bytes) {
  int device = 0;
  int multiprocessors = 0;
  ESPALIER_CUDA_TRY(cudaGetDevice(&device));
  ESPALIER_CUDA_TRY(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  Result<DeviceMemory> sink = DeviceMemory::allocate(sizeof(uint32_t));
  if (!sink.is_ok()) return sink.status();
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(multiprocessors * 4));
  config.blockDim = dim3(kReadThreads);
  config.stream = timer.stream();
  const int64_t passes = (kLeastRead + bytes - 1) / bytes;
  const Result<ProductTimes::Time> time = timer.measure([&]() -> Status {
    for (int64_t i = 0; i < passes; ++i) {
      ESPALIER_CUDA_TRY(cudaLaunchKernelEx(&config, read_kernel, static_cast<const uint4*>(data), bytes / 16,
                                           sink.value().as<uint32_t>()));
    }
    return Status::ok();
  });
  if (!time.is_ok()) return time.status();
  return static_cast<double>(passes * bytes) / time.value().seconds;
}

Result<TileLayout> layout_of(const Format& format) {
  if (format.values == Values::kBf16) {
    if (format.storage == Storage::kDense) return TileLayout::kDense;
    if (format.storage == Storage::kBitmap) return TileLayout::kBitmap;
    if (format.n == 2 && format.m == 4) return TileLayout::kTwoFour;
    if (format.m == 32) return TileLayout::kBalanced;
  }
  if (format.values == Values::kInt8) {
    if (format.storage == Storage::kDense) return TileLayout::kDenseInt8;
    if (format.n == 2 && format.m == 4) return TileLayout::kTwoFourInt8;
  }
  return Status(Code::kUsage, "the GPU has no product for " + format.name() +
                                  "; it has some for dense, bitmap, 2:4 and N:32 bf16, and for dense and 2:4 int8");
}

// Matrices with the same weights, each in memory of its own.
class Copies {
 public:
  Status create(const TiledWeights& one, int count) {
    tile_bytes_ = static_cast<int64_t>(one.tiles.size());
    Result<DeviceMemory> tiles = DeviceMemory::allocate(tile_bytes_ * count);
    if (!tiles.is_ok()) return tiles.status();
    tiles_ = std::move(tiles.value());
    for (int i = 0; i < count; ++i) {
      const void* from = i == 0 ? static_cast<const void*>(one.tiles.data()) : tiles_.data();
      ESPALIER_CUDA_TRY(cudaMemcpy(tiles_.as<uint8_t>() + i * tile_bytes_, from, static_cast<size_t>(tile_bytes_),
                                   cudaMemcpyDefault));
    }
    const auto start_bytes = static_cast<int64_t>(one.starts.size() * sizeof(uint32_t));
    Result<DeviceMemory> starts = DeviceMemory::allocate(start_bytes * count);
    if (!starts.is_ok()) return starts.status();
    starts_ = std::move(starts.value());
    for (int i = 0; i < count; ++i) {
      uint32_t* to = starts_.as<uint32_t>() + static_cast<size_t>(i) * one.starts.size();
      ESPALIER_CUDA_TRY(cudaMemcpy(to, one.starts.data(), static_cast<size_t>(start_bytes), cudaMemcpyHostToDevice));
      views_.push_back(describe_tiles(one, tiles_.as<uint8_t>() + i * tile_bytes_, to));
    }
    return Status::ok();
  }

  const std::vector<DeviceTiles>& views() const { return views_; }
  const DeviceMemory& tiles() const { return tiles_; }

 private:
  int64_t tile_bytes_ = 0;
  DeviceMemory tiles_, starts_;
  std::vector<DeviceTiles> views_;
};

Result<ProductTimes::Time> time_products(const Timer& timer, int device, const ProductMeasure& measure,
                                         const Copies& copies, int tokens) {
  // Products of few write whole groups.
  const int64_t rows = (tokens + kMostFewRows - 1) / kMostFewRows * kMostFewRows;
  const int64_t x_bytes = rows * measure.parts * part_stride(measure.cols) * static_cast<int64_t>(sizeof(uint16_t));
  Result<DeviceMemory> x = DeviceMemory::allocate(x_bytes);
  if (!x.is_ok()) return x.status();
  Result<DeviceMemory> y = DeviceMemory::allocate(rows * measure.rows * static_cast<int64_t>(sizeof(float)));
  if (!y.is_ok()) return y.status();
  // Each element 0x3d3d, a bf16 number near 0.05.
  ESPALIER_CUDA_TRY(cudaMemset(x.value().data(), 0x3d, static_cast<size_t>(x_bytes)));
  ESPALIER_CUDA_TRY(cudaDeviceSynchronize());
  const bool has_wide = has_wide_products(device);
  const auto launch = [&]() -> Status {
    for (const DeviceTiles& weights : copies.views()) {
      Product product;
      product.weights = weights;
      product.tokens = tokens;
      product.parts = measure.parts;
      product.x = x.value().as<uint16_t>();
      product.y = y.value().data();
      product.output = OutputType::kF32;
      ESPALIER_TRY(launch_rows(product, has_wide, timer.stream()));
    }
    return Status::ok();
  };
  // Kernels are loaded when they are first launched, which is not for a graph to do.
  ESPALIER_TRY(launch());
  ESPALIER_CUDA_TRY(cudaDeviceSynchronize());
  Graph graph;
  ESPALIER_TRY(graph.capture(timer.stream(), launch));
  Result<ProductTimes::Time> time = timer.measure([&] { return graph.launch(timer.stream()); });
  if (time.is_ok()) time.value().seconds /= measure.count;
  return time;
}

Status measure_all(const Timer& timer, int device, const ProductMeasure& measure, const Copies& copies,
                   ProductTimes& out) {
  const auto read = [&]() -> Status {
    const Result<double> rate = time_read(timer, copies.tiles().data(), copies.tiles().bytes());
    if (rate.is_ok()) out.ceiling = std::max(out.ceiling, rate.value());
    return rate.status();
  };
  ESPALIER_TRY(read());
  for (const int tokens : measure.batches) {
    const Result<ProductTimes::Time> time = time_products(timer, device, measure, copies, tokens);
    if (!time.is_ok()) return time.status();
    out.times.push_back(time.value());
  }
  return read();
}

}  // namespace

Result<double> read_ceiling(int device, int64_t bytes) {
  if (bytes < 1) return Status(Code::kUsage, "a read ceiling needs a positive number of bytes");
  ESPALIER_TRY(check_device(device));
  ESPALIER_CUDA_TRY(cudaSetDevice(device));
  const int64_t whole = (bytes + 15) / 16 * 16;
  Result<DeviceMemory> memory = DeviceMemory::allocate(whole);
  if (!memory.is_ok()) return memory.status();
  ESPALIER_CUDA_TRY(cudaMemset(memory.value().data(), 1, static_cast<size_t>(whole)));
  ESPALIER_CUDA_TRY(cudaDeviceSynchronize());
  const Result<Timer> timer = Timer::create();
  if (!timer.is_ok()) return timer.status();
  return time_read(timer.value(), memory.value().data(), whole);
}

Result<ProductTimes> measure_products(ThreadPool& pool, int device, const ProductMeasure& measure) {
  const Result<TileLayout> layout = layout_of(measure.format);
  if (!layout.is_ok()) return layout.status();
  ESPALIER_TRY(check_device(device));
  ESPALIER_CUDA_TRY(cudaSetDevice(device));
  const Result<PackedMatrix> random =
      random_matrix(pool, measure.format, measure.rows, measure.cols, measure.sparsity, measure.seed);
  if (!random.is_ok()) return random.status();
  const int n = layout.value() == TileLayout::kBalanced ? measure.format.n : 0;
  const Result<TiledWeights> tiled = holds_codes(layout.value())
                                         ? tile_codes(pool, layout.value(), random.value())
                                         : tile_weights(pool, layout.value(), random.value(), n);
  if (!tiled.is_ok()) return tiled.status();
  Copies copies;
  ESPALIER_TRY(copies.create(tiled.value(), measure.count));
  const Result<Timer> timer = Timer::create();
  if (!timer.is_ok()) return timer.status();
  ProductTimes out;
  out.bytes = tiled.value().bytes();
  const Status measured = measure_all(timer.value(), device, measure, copies, out);
  // Nothing may run on memory that goes.
  cudaDeviceSynchronize();
  ESPALIER_TRY(measured);
  return out;
}

}  // namespace espalier::cuda
