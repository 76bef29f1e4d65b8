// Native objects as opaque JavaScript values: tagged with their type, so that a wrong one is an error and not a crash;
// freed by dispose() or, at the latest, by the garbage collector. Jobs share ownership, so disposing never pulls an
// object away from work in progress.
#pragma once

#include <napi.h>

#include <memory>

#include "binding/errors.h"

namespace espalier::binding {

// `Tag::kTypeTag` is a napi_type_tag and `Tag::kName` what messages call the object.
template <class T, class Tag>
class Handle {
 public:
  // `bytes` of native memory are reported to V8, whose collector would otherwise not know what it holds.
  static Napi::Value create(Napi::Env env, std::shared_ptr<T> value, int64_t bytes) {
    Napi::MemoryManagement::AdjustExternalMemory(env, bytes);
    auto* held = new Held{std::move(value), bytes};
    auto external = Napi::External<Held>::New(env, held, [](Napi::Env on, Held* data) {
      data->release(on);
      delete data;
    });
    external.TypeTag(&Tag::kTypeTag);
    return external;
  }

  static std::shared_ptr<T> get(const Napi::Value& value) {
    Held* held = find(value);
    if (!held->value) {
      throw to_error(value.Env(), Status(Code::kDisposed, std::string("this ") + Tag::kName + " was disposed"));
    }
    return held->value;
  }

  static void dispose(const Napi::Value& value) { find(value)->release(value.Env()); }

 private:
  struct Held {
    std::shared_ptr<T> value;
    int64_t bytes;

    void release(Napi::Env env) {
      if (!value) return;
      value.reset();
      Napi::MemoryManagement::AdjustExternalMemory(env, -bytes);
    }
  };

  static Held* find(const Napi::Value& value) {
    if (!value.IsExternal() || !value.As<Napi::External<Held>>().CheckTypeTag(&Tag::kTypeTag)) {
      throw to_error(value.Env(), Status(Code::kUsage, std::string("expected a ") + Tag::kName));
    }
    return value.As<Napi::External<Held>>().Data();
  }
};

}  // namespace espalier::binding
