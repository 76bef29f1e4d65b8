// errorCodes(): the names of all codes that native code can return, so that a test can hold lib/errors.ts to them.
#include "binding/exports.h"
#include "core/status.h"

namespace espalier::binding {

void export_error_codes(Napi::Env env, Napi::Object exports) {
  const auto list = [](const Napi::CallbackInfo& info) -> Napi::Value {
    Napi::Array names = Napi::Array::New(info.Env());
    for (int code = static_cast<int>(Code::kOk) + 1; code <= static_cast<int>(Code::kInternal); ++code) {
      names.Set(names.Length(), code_name(static_cast<Code>(code)));
    }
    return names;
  };
  exports.Set("errorCodes", Napi::Function::New(env, list, "errorCodes"));
}

}  // namespace espalier::binding
