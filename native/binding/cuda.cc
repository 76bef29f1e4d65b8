// cudaDevices(): the GPUs that the kernels run on, or why there are none.
#include "binding/exports.h"
#include "kernels/cuda/device.h"

namespace espalier::binding {

void export_cuda(Napi::Env env, Napi::Object exports) {
  exports.Set("cudaDevices", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
                const cuda::DeviceSurvey survey = cuda::survey_devices();
                Napi::Array devices = Napi::Array::New(info.Env(), survey.devices.size());
                for (size_t i = 0; i < survey.devices.size(); ++i) {
                  const cuda::Device& device = survey.devices[i];
                  Napi::Object object = Napi::Object::New(info.Env());
                  object.Set("name", device.name);
                  object.Set("capability", std::to_string(device.major) + "." + std::to_string(device.minor));
                  object.Set("memory", static_cast<double>(device.memory));
                  devices.Set(static_cast<uint32_t>(i), object);
                }
                Napi::Object object = Napi::Object::New(info.Env());
                object.Set("compiled", survey.compiled);
                object.Set("devices", devices);
                object.Set("reason", survey.reason);
                object.Set("hasCublasLt", survey.has_cublaslt);
                object.Set("cublasLt", survey.cublaslt);
                return object;
              }));
}

}  // namespace espalier::binding
