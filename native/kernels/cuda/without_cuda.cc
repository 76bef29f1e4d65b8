// Stands for the CUDA sources in builds without nvcc.
#include "engine/cuda/cuda_engine.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/measure.h"
#include "prune/cuda/layer_runner.h"

namespace espalier::cuda {

DeviceSurvey survey_devices() {
  DeviceSurvey survey;
  survey.reason = "this addon was built without CUDA, as nvcc was not found";
  return survey;
}

Result<std::unique_ptr<Engine>> load_engine(const ModelSpec&, const EngineOptions& options, const LoadProgress&,
                                            const std::atomic<bool>*) {
  return choose_devices(*options.gpus).status();
}

Result<double> read_ceiling(int device, int64_t) { return check_device(device); }

Result<ProductTimes> measure_products(ThreadPool&, int device, const ProductMeasure&) { return check_device(device); }

Result<std::unique_ptr<LayerRunner>> make_layer_runner(int device, const RunnableLayer&) {
  return check_device(device);
}

}  // namespace espalier::cuda
