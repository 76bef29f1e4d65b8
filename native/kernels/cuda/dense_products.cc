#include "kernels/cuda/dense_products.h"

#include <library_types.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "kernels/cuda/chosen_algorithms.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/expand.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/product_launch.h"
#include "kernels/cuda/tile_codec.h"

namespace espalier::cuda {
namespace {

// What NVIDIA recommends for Hopper.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
// Bands have a multiple of as many rows, so that the tiles of the library's products are full.
constexpr int64_t kBandUnit = 256;
// A model has a few matrices, but its prompts end in chunks of any length.
constexpr size_t kMostAlgorithms = 1024;

// Rows of bf16 from which on this is faster than expanding in the product, see bench/RESULTS.md.
constexpr int64_t kLeastRows = 1024;
constexpr int64_t kLeastRowsInBands = 2048;
// Those whose products by all weights take as long as expanding these.
constexpr int64_t kRowsWhileExpanding = 800;

int64_t units_of(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
int64_t round_up(int64_t value, int64_t unit) { return units_of(value, unit) * unit; }

// Rows of y that are computed while the weights are expanded; the library has the others. As many as that takes, and
// as give all multiprocessors something to do until the end.
int rows_on_the_way(const Product& product, int multiprocessors) {
  const int64_t rows = product.weights.rows;
  const int64_t x_rows = product.tokens * int64_t{product.parts};
  const int64_t token_blocks = units_of(product.tokens, kExpandedItemTokens);
  const int64_t least = units_of(rows * kRowsWhileExpanding / x_rows, kExpandedItemRows);
  const int64_t rounds = units_of(least * token_blocks, multiprocessors);
  // Row blocks go in pairs.
  const int64_t blocks = std::max<int64_t>(rounds * multiprocessors / token_blocks / 2, 1) * 2;
  return static_cast<int>(std::min(blocks * kExpandedItemRows, rows));
}

Status to_status(int error, const char* call) {
  if (error == lt::kSuccess) return Status::ok();
  return Status(Code::kDevice, std::string(call) + " failed: cuBLAS error " + std::to_string(error));
}

// The bytes, up to 256, that addresses and the distances between rows are multiples of.
uint32_t alignment_of(const void* pointer) {
  return static_cast<uint32_t>(std::gcd(reinterpret_cast<uintptr_t>(pointer), uintptr_t{lt::kAlignment}));
}

// Something of the library's that is let go when it goes out of scope.
class Handle {
 public:
  explicit Handle(int (*destroy)(void*)) : destroy_(destroy) {}
  Handle(Handle&& other) noexcept : data_(std::exchange(other.data_, nullptr)), destroy_(other.destroy_) {}
  Handle& operator=(Handle&&) = delete;
  ~Handle() {
    if (data_ != nullptr) destroy_(data_);
  }
  void** out() { return &data_; }
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
  int (*destroy_)(void*);
};

// y = W x or, with `adds`, y += W x: W [rows][cols] bf16, x [tokens][cols] bf16, y [tokens][rows]; strides are those
// from row to row, in elements.
struct DenseTask {
  const uint16_t* w;
  int64_t w_stride;
  const uint16_t* x;
  int64_t x_stride;
  void* y;
  int64_t y_stride;
  cudaDataType_t y_type;
  uint64_t rows;
  uint64_t cols;
  uint64_t tokens;
  bool adds;
};

}  // namespace

struct DenseProducts::State {
  State(const CublasLt& found, DeviceMemory for_weights, DeviceMemory for_work, DeviceMemory for_progress)
      : library(found),
        handle(found.destroy),
        weights(std::move(for_weights)),
        workspace(std::move(for_work)),
        progress(std::move(for_progress)) {}

  const CublasLt& library;
  Handle handle;
  DeviceMemory weights;
  DeviceMemory workspace;
  DeviceMemory progress;  // of launch_expanded_product; empty where the device has no such products

  ExpansionRoom room() const {
    return {weights.as<uint16_t>(), progress.as<uint32_t>(), progress.bytes() > 0 ? weights.bytes() / kDenseBytes : 0};
  }
  ChosenAlgorithms algorithms{kMostAlgorithms};

  Status multiply(const DenseTask& task, cudaStream_t stream);

 private:
  // `product` and the layouts are those of the task.
  Result<lt::Choice> choose(const DenseTask& task, const ProductKind& kind, void* product, void* w, void* x, void* y);
};

DenseProducts::DenseProducts(std::unique_ptr<State> state) : state_(std::move(state)) {}
DenseProducts::DenseProducts(DenseProducts&&) noexcept = default;
DenseProducts& DenseProducts::operator=(DenseProducts&&) noexcept = default;
DenseProducts::~DenseProducts() = default;

Result<DenseProducts> DenseProducts::create(int64_t room_bytes) {
  const Result<CublasLt>& library = find_cublaslt();
  if (!library.is_ok()) return library.status();
  Result<DeviceMemory> weights = DeviceMemory::allocate(room_bytes);
  if (!weights.is_ok()) return weights.status();
  Result<DeviceMemory> workspace = DeviceMemory::allocate(kWorkspaceBytes);
  if (!workspace.is_ok()) return workspace.status();
  int device = 0;
  ESPALIER_CUDA_TRY(cudaGetDevice(&device));
  DeviceMemory progress;
  if (has_wide_products(device)) {
    Result<DeviceMemory> words =
        DeviceMemory::allocate(expansion_words(room_bytes / kDenseBytes) * int64_t{sizeof(uint32_t)});
    if (!words.is_ok()) return words.status();
    progress = std::move(words.value());
    ESPALIER_CUDA_TRY(cudaMemset(progress.data(), 0, static_cast<size_t>(progress.bytes())));
    ESPALIER_CUDA_TRY(cudaStreamSynchronize(nullptr));
  }
  auto state = std::make_unique<State>(library.value(), std::move(weights.value()), std::move(workspace.value()),
                                       std::move(progress));
  ESPALIER_TRY(to_status(library.value().create(state->handle.out()), "cublasLtCreate"));
  return DenseProducts(std::move(state));
}

bool DenseProducts::takes(const Product& product) {
  const bool output = product.output == OutputType::kF32 || (product.output == OutputType::kBf16 && product.parts == 1);
  return output && takes_expanded(product);
}

bool DenseProducts::is_faster(const Product& product) {
  const bool fits = expansion_tiles(product.weights) * kDenseBytes <= kRoomBytes;
  return takes(product) && product.tokens * int64_t{product.parts} >= (fits ? kLeastRows : kLeastRowsInBands);
}

Result<lt::Choice> DenseProducts::State::choose(const DenseTask& task, const ProductKind& kind, void* product, void* w,
                                                void* x, void* y) {
  Handle preference(library.preference_destroy);
  ESPALIER_TRY(to_status(library.preference_create(preference.out()), "cublasLtMatmulPreferenceCreate"));
  const auto prefer = [&](int attribute, const auto& value) {
    return to_status(library.preference_set(preference.get(), attribute, &value, sizeof value),
                     "cublasLtMatmulPreferenceSetAttribute");
  };
  ESPALIER_TRY(prefer(lt::kMaxWorkspace, static_cast<uint64_t>(workspace.bytes())));
  const auto [of_w, of_x, of_y] = kind.alignments;
  int attribute = lt::kFirstAlignment;
  for (const uint32_t alignment : {of_w, of_x, of_y, of_y}) ESPALIER_TRY(prefer(attribute++, alignment));
  lt::Choice choice{};
  int found = 0;
  ESPALIER_TRY(to_status(library.choose(handle.get(), product, w, x, y, y, preference.get(), 1, &choice, &found),
                         "cublasLtMatmulAlgoGetHeuristic"));
  if (found < 1) {
    return Status(Code::kDevice, "cuBLASLt " + library.version + " has no product of " + std::to_string(task.rows) +
                                     "×" + std::to_string(task.cols) + " by " + std::to_string(task.tokens));
  }
  return choice;
}

Status DenseProducts::State::multiply(const DenseTask& task, cudaStream_t stream) {
  Handle product(library.task_destroy);
  Handle w(library.layout_destroy);
  Handle x(library.layout_destroy);
  Handle y(library.layout_destroy);
  // Matrices of columns, as the library has them: those of w and x are our rows.
  ESPALIER_TRY(to_status(library.task_create(product.out(), lt::kCompute32F, CUDA_R_32F), "cublasLtMatmulDescCreate"));
  const int32_t transposed = lt::kTransposed;
  ESPALIER_TRY(to_status(library.task_set(product.get(), lt::kTransposeA, &transposed, sizeof transposed),
                         "cublasLtMatmulDescSetAttribute"));
  const auto layout = [&](Handle& to, cudaDataType_t type, uint64_t rows, uint64_t cols, int64_t stride) {
    return to_status(library.layout_create(to.out(), type, rows, cols, stride), "cublasLtMatrixLayoutCreate");
  };
  ESPALIER_TRY(layout(w, CUDA_R_16BF, task.cols, task.rows, task.w_stride));
  ESPALIER_TRY(layout(x, CUDA_R_16BF, task.cols, task.tokens, task.x_stride));
  ESPALIER_TRY(layout(y, task.y_type, task.rows, task.tokens, task.y_stride));
  const ProductKind kind{.sizes = {task.rows, task.cols, task.tokens},
                         .strides = {task.w_stride, task.x_stride, task.y_stride},
                         .alignments = {alignment_of(task.w), alignment_of(task.x), alignment_of(task.y)},
                         .y_type = task.y_type};
  const Result<lt::Choice> choice =
      algorithms.get(kind, [&] { return choose(task, kind, product.get(), w.get(), x.get(), y.get()); });
  if (!choice.is_ok()) return choice.status();
  const float alpha = 1;
  const float beta = task.adds ? 1 : 0;
  return to_status(library.multiply(handle.get(), product.get(), &alpha, task.w, w.get(), task.x, x.get(), &beta,
                                    task.y, y.get(), task.y, y.get(), choice.value().algorithm, workspace.data(),
                                    static_cast<size_t>(workspace.bytes()), stream),
                   "cublasLtMatmul");
}

Status DenseProducts::launch(const Product& product, cudaStream_t stream) {
  ESPALIER_TRY(check_sizes(product));
  if (!takes(product)) {
    return Status(Code::kUsage,
                  "a product through cuBLASLt takes one n:32 or bitmap matrix and rows in order, and gives float32, or "
                  "bf16 of one part");
  }
  const DeviceTiles& weights = product.weights;
  const int64_t stride = round_up(weights.cols, kTileWidth);
  // Rows from `first` on, of which the expanded weights are at `expanded`.
  const auto multiply = [&](const uint16_t* expanded, int64_t first, int64_t rows) {
    const int64_t y_bytes = product.output == OutputType::kF32 ? 4 : 2;
    for (int part = 0; part < product.parts; ++part) {
      ESPALIER_TRY(state_->multiply({.w = expanded,
                                     .w_stride = stride,
                                     .x = product.x + part * weights.cols,
                                     .x_stride = product.parts * weights.cols,
                                     .y = static_cast<uint8_t*>(product.y) + first * y_bytes,
                                     .y_stride = weights.rows,
                                     .y_type = product.output == OutputType::kF32 ? CUDA_R_32F : CUDA_R_16BF,
                                     .rows = static_cast<uint64_t>(rows),
                                     .cols = static_cast<uint64_t>(weights.cols),
                                     .tokens = static_cast<uint64_t>(product.tokens),
                                     .adds = part > 0},
                                    stream));
    }
    return Status::ok();
  };
  const ExpansionRoom room = state_->room();
  if (expansion_tiles(weights) <= room.tiles) {
    const Result<DeviceLimits> limits = current_limits();
    if (!limits.is_ok()) return limits.status();
    const int first = rows_on_the_way(product, limits.value().multiprocessors);
    ESPALIER_TRY(launch_expanded_product(product, first, room, stream));
    return first < weights.rows ? multiply(room.expanded + first * stride, first, weights.rows - first) : Status::ok();
  }
  const int64_t most = state_->weights.bytes() / (stride * 2) / kTileHeight * kTileHeight;
  if (most < 1) return Status(Code::kUsage, "there is no room for 16 expanded rows of " + std::to_string(stride));
  const int64_t bands = units_of(weights.rows, most);
  const int64_t each = std::min(most, round_up(units_of(weights.rows, bands), kBandUnit));
  for (int64_t first = 0; first < weights.rows; first += each) {
    const int64_t rows = std::min(each, weights.rows - first);
    ESPALIER_TRY(expand({weights, static_cast<int>(first), static_cast<int>(rows), room.expanded}, stream));
    ESPALIER_TRY(multiply(room.expanded, first, rows));
  }
  return Status::ok();
}

}  // namespace espalier::cuda
