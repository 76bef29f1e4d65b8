#include "binding/safetensors_file.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "binding/errors.h"
#include "binding/exports.h"
#include "checkpoint/safetensors_header.h"

namespace espalier::binding {
namespace {

constexpr napi_type_tag kTypeTag = {0x8d0a4f1b6c5e42f7, 0xa3b97c21d45e8f60};

Result<SafetensorsHeader> read_header(const MappedFile& file) {
  std::string first_bytes(std::min<uint64_t>(file.size(), 8), '\0');
  ESPALIER_TRY(file.read(0, first_bytes.size(), first_bytes.data()));
  const Result<uint64_t> length = safetensors_header_length(first_bytes, file.size());
  if (!length.is_ok()) return length.status();
  std::string json(length.value(), '\0');
  ESPALIER_TRY(file.read(8, json.size(), json.data()));
  return parse_safetensors_header(json, file.size());
}

Result<SafetensorsHeader> header_or_no_memory(const MappedFile& file) {
  try {
    return read_header(file);
  } catch (const std::bad_alloc&) {
    return Status(Code::kOutOfMemory, "not enough memory for the header");
  }
}

// The same status with the file named in front, as headers are parsed without knowing where they come from.
Status with_path(const Status& status, const std::string& path) {
  return Status(status.code(), path + ": " + status.message()).with_tensor(status.tensor());
}

Napi::Array tensors_to_js(Napi::Env env, const SafetensorsHeader& header) {
  Napi::Array tensors = Napi::Array::New(env, header.tensors.size());
  for (uint32_t i = 0; i < header.tensors.size(); ++i) {
    const Napi::HandleScope scope(env);
    const TensorInfo& info = header.tensors[i];
    Napi::Array shape = Napi::Array::New(env, info.shape.size());
    for (uint32_t k = 0; k < info.shape.size(); ++k) shape.Set(k, static_cast<double>(info.shape[k]));
    Napi::Object tensor = Napi::Object::New(env);
    tensor.Set("name", info.name);
    tensor.Set("dtype", dtype_name(info.dtype));
    tensor.Set("shape", shape);
    tensor.Set("begin", static_cast<double>(info.begin));
    tensor.Set("end", static_cast<double>(info.end));
    tensors.Set(i, tensor);
  }
  return tensors;
}

// Without a prototype, and with properties defined instead of set, a key such as __proto__ is a key like any other.
Napi::Object metadata_to_js(Napi::Env env, const SafetensorsHeader& header) {
  const Napi::Object global_object = env.Global().Get("Object").As<Napi::Object>();
  Napi::Object metadata = global_object.Get("create").As<Napi::Function>().Call({env.Null()}).As<Napi::Object>();
  for (const auto& [key, value] : header.metadata) {
    metadata.DefineProperty(Napi::PropertyDescriptor::Value(Napi::String::New(env, key), Napi::String::New(env, value),
                                                            napi_default_jsproperty));
  }
  return metadata;
}

}  // namespace

class SafetensorsFile : public Napi::ObjectWrap<SafetensorsFile> {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("SafetensorsFile", DefineClass(env, "SafetensorsFile",
                                               {StaticMethod<&SafetensorsFile::open>("open"),
                                                InstanceMethod<&SafetensorsFile::read>("read"),
                                                InstanceMethod<&SafetensorsFile::dispose>("dispose")}));
  }

  explicit SafetensorsFile(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SafetensorsFile>(info) {
    const Napi::Env env = info.Env();
    if (!info[0].IsString()) throw to_error(env, Status(Code::kUsage, "SafetensorsFile.open takes a path"));
    const std::string path = info[0].As<Napi::String>();
    Result<std::shared_ptr<MappedFile>> file = MappedFile::open(path);
    check(env, file.status());
    const Result<SafetensorsHeader> header = header_or_no_memory(*file.value());
    if (!header.is_ok()) throw to_error(env, with_path(header.status(), path));
    Napi::Object self = info.This().As<Napi::Object>();
    self.TypeTag(&kTypeTag);
    const auto define_value = [&](const char* name, Napi::Value value) {
      self.DefineProperty(Napi::PropertyDescriptor::Value(name, value, napi_enumerable));
    };
    define_value("tensors", tensors_to_js(env, header.value()));
    define_value("metadata", metadata_to_js(env, header.value()));
    define_value("size", Napi::Number::New(env, static_cast<double>(file.value()->size())));
    file_ = std::move(file.value());
  }

  std::shared_ptr<MappedFile> file(Napi::Env env) const {
    if (file_ == nullptr) throw to_error(env, Status(Code::kDisposed, "this SafetensorsFile was disposed"));
    return file_;
  }

  static SafetensorsFile* from(const Napi::Value& value) {
    if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kTypeTag)) return nullptr;
    return Unwrap(value.As<Napi::Object>());
  }

 private:
  static Napi::Value open(const Napi::CallbackInfo& info) {
    if (!info.This().IsFunction()) {
      throw to_error(info.Env(), Status(Code::kUsage, "call it as SafetensorsFile.open(path)"));
    }
    return info.This().As<Napi::Function>().New({info[0]});
  }

  Napi::Value read(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const std::shared_ptr<MappedFile> mapped = file(env);
    const double size = static_cast<double>(mapped->size());
    const double begin = info[0].IsNumber() ? info[0].As<Napi::Number>().DoubleValue() : -1;
    const double end = info[1].IsNumber() ? info[1].As<Napi::Number>().DoubleValue() : -1;
    if (!(begin >= 0 && begin <= end && end <= size && begin == std::floor(begin) && end == std::floor(end))) {
      throw to_error(env, Status(Code::kUsage, "read(begin, end) needs whole numbers with 0 <= begin <= end <= " +
                                                   std::to_string(mapped->size())));
    }
    // JavaScript's own constructor throws where there is no memory; the Node-API function would end the process.
    Napi::Value made;
    try {
      made = env.Global().Get("Uint8Array").As<Napi::Function>().New({Napi::Number::New(env, end - begin)});
    } catch (const Napi::Error&) {
      throw to_error(env,
                     Status(Code::kOutOfMemory, "cannot hold " + std::to_string(static_cast<uint64_t>(end - begin)) +
                                                    " bytes of " + mapped->path() + " in one array"));
    }
    Napi::Uint8Array bytes = made.As<Napi::Uint8Array>();
    check(env, mapped->read(static_cast<uint64_t>(begin), bytes.ByteLength(), bytes.Data()));
    return bytes;
  }

  void dispose(const Napi::CallbackInfo&) { file_.reset(); }

  std::shared_ptr<MappedFile> file_;
};

std::shared_ptr<MappedFile> mapped_file_of(const Napi::Value& value) {
  const SafetensorsFile* file = SafetensorsFile::from(value);
  if (file == nullptr) throw to_error(value.Env(), Status(Code::kUsage, "a SafetensorsFile was expected"));
  return file->file(value.Env());
}

void export_safetensors_file(Napi::Env env, Napi::Object exports) { SafetensorsFile::define(env, exports); }

}  // namespace espalier::binding
