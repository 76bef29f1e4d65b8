#include "binding/spec_reader.h"

#include "binding/errors.h"
#include "binding/safetensors_file.h"
#include "engine/linear.h"

namespace espalier::binding {
namespace {

int64_t integer(const Napi::Object& object, const char* key) { return object.Get(key).As<Napi::Number>().Int64Value(); }
float real(const Napi::Object& object, const char* key) { return object.Get(key).As<Napi::Number>().FloatValue(); }
Napi::Object child(const Napi::Object& object, const char* key) { return object.Get(key).As<Napi::Object>(); }

// A byte range, checked against its file: what TypeScript hands over is not trusted with memory.
FileRange read_range(const Napi::Object& object, const Files& files) {
  const int64_t file = integer(object, "file");
  const int64_t begin = integer(object, "begin");
  const int64_t end = integer(object, "end");
  if (file < 0 || file >= static_cast<int64_t>(files.size()) || begin < 0 || end < begin ||
      end > static_cast<int64_t>(files[static_cast<size_t>(file)]->size())) {
    throw to_error(object.Env(), Status(Code::kInternal, "a weight lies outside its file"));
  }
  return {files[static_cast<size_t>(file)], begin, end - begin};
}

MlpSpec read_mlp(const Napi::Object& object, const Files& files) {
  return {read_weight(object.Get("gate"), files), read_weight(object.Get("up"), files),
          read_weight(object.Get("down"), files)};
}

AttentionSpec read_attention(const Napi::Object& object, const Files& files) {
  AttentionSpec spec;
  spec.heads = static_cast<int>(integer(object, "heads"));
  spec.kv_heads = static_cast<int>(integer(object, "kvHeads"));
  spec.head_dim = static_cast<int>(integer(object, "headDim"));
  spec.scale = real(object, "scale");
  spec.window = integer(object, "window");
  spec.clip = real(object, "clip");
  spec.q = read_weight(object.Get("q"), files);
  spec.k = read_weight(object.Get("k"), files);
  spec.v = read_weight(object.Get("v"), files);
  spec.o = read_weight(object.Get("o"), files);
  spec.q_bias = read_weight(object.Get("qBias"), files);
  spec.k_bias = read_weight(object.Get("kBias"), files);
  spec.v_bias = read_weight(object.Get("vBias"), files);
  spec.o_bias = read_weight(object.Get("oBias"), files);
  spec.q_norm = read_weight(object.Get("qNorm"), files);
  spec.k_norm = read_weight(object.Get("kNorm"), files);
  return spec;
}

FeedForwardPartSpec read_part(const Napi::Object& object, const Files& files) {
  FeedForwardPartSpec spec;
  if (object.Get("kind").As<Napi::String>().Utf8Value() == "dense") {
    spec.kind = FeedForwardPartSpec::Kind::kDense;
    spec.mlp = read_mlp(child(object, "mlp"), files);
    spec.output_gate = read_weight(object.Get("gate"), files);
    return spec;
  }
  spec.kind = FeedForwardPartSpec::Kind::kRouted;
  const Napi::Object router = child(object, "router");
  spec.router = read_weight(router.Get("weight"), files);
  spec.routing = read_routing(router);
  const WeightRef bias = read_weight(router.Get("correctionBias"), files);
  if (bias.present()) {
    Result<std::vector<float>> loaded = load_vector(bias);
    check(object.Env(), loaded.status());
    spec.routing.correction_bias = std::move(loaded.value());
  }
  const auto map = router.Get("expertOfRow").As<Napi::Array>();
  const auto experts = object.Get("experts").As<Napi::Array>();
  for (uint32_t i = 0; i < map.Length(); ++i) {
    const int32_t expert = map.Get(i).As<Napi::Number>().Int32Value();
    if (expert < 0 || expert >= static_cast<int32_t>(experts.Length())) {
      throw to_error(object.Env(), Status(Code::kInternal, "a router row leads to no expert"));
    }
    spec.expert_of_row.push_back(expert);
  }
  if (spec.router.rows != static_cast<int64_t>(map.Length())) {
    throw to_error(object.Env(), Status(Code::kInternal, "a router does not fit its rows"));
  }
  check(object.Env(), check_router(spec.routing, spec.router.rows));
  for (uint32_t i = 0; i < experts.Length(); ++i) {
    spec.experts.push_back(read_mlp(experts.Get(i).As<Napi::Object>(), files));
  }
  return spec;
}

}  // namespace

Files read_files(const Napi::Array& files) {
  Files result;
  for (uint32_t i = 0; i < files.Length(); ++i) result.push_back(mapped_file_of(files.Get(i)));
  return result;
}

Precision read_precision(const Napi::Value& value) {
  const std::string name = value.As<Napi::String>().Utf8Value();
  return name == "bf16"   ? Precision::kBf16
         : name == "int8" ? Precision::kInt8
         : name == "int4" ? Precision::kInt4
                          : Precision::kSource;
}

Activations read_activations(const Napi::Value& value) {
  return value.As<Napi::String>().Utf8Value() == "bf16" ? Activations::kBf16 : Activations::kFloat32;
}

Format read_format(const Napi::Value& value) {
  const auto object = value.As<Napi::Object>();
  const std::string storage = object.Get("storage").As<Napi::String>().Utf8Value();
  const std::string values = object.Get("values").As<Napi::String>().Utf8Value();
  Format format;
  format.storage = storage == "bitmap" ? Storage::kBitmap : storage == "n:m" ? Storage::kNm : Storage::kDense;
  format.values = values == "f32"    ? Values::kF32
                  : values == "int8" ? Values::kInt8
                  : values == "int4" ? Values::kInt4
                                     : Values::kBf16;
  if (format.storage == Storage::kNm) {
    format.n = static_cast<int>(integer(object, "n"));
    format.m = static_cast<int>(integer(object, "m"));
  }
  return format;
}

WeightRef read_weight(const Napi::Value& value, const Files& files) {
  WeightRef ref;
  if (value.IsUndefined()) return ref;
  const auto object = value.As<Napi::Object>();
  ref.name = object.Get("name").As<Napi::String>().Utf8Value();
  const std::optional<DType> dtype = dtype_from_name(object.Get("dtype").As<Napi::String>().Utf8Value());
  if (!dtype || !is_compute_dtype(*dtype)) {
    throw to_error(object.Env(), Status(Code::kMismatch, "a weight must be BF16, F16 or F32").with_tensor(ref.name));
  }
  ref.dtype = *dtype;
  ref.rows = integer(object, "rows");
  ref.cols = integer(object, "cols");
  ref.values = read_range(object, files);
  const Napi::Value bitmask = object.Get("bitmask");
  const int64_t elements = ref.rows * ref.cols;
  bool fits = ref.rows > 0 && ref.cols > 0;
  ref.packed = object.Get("packed").ToBoolean().Value();
  // What a packed block says of itself is checked where it is mapped.
  if (ref.packed) return ref;
  if (bitmask.IsUndefined()) {
    fits = fits && ref.values.bytes == elements * (dtype_bits(ref.dtype) / 8);
  } else {
    ref.bitmask = read_range(bitmask.As<Napi::Object>(), files);
    fits = fits && ref.bitmask.bytes == ref.rows * ((ref.cols + 7) / 8);
  }
  if (!fits)
    throw to_error(object.Env(),
                   Status(Code::kInternal, "a weight's bytes do not fit its shape").with_tensor(ref.name));
  return ref;
}

RouterOptions read_routing(const Napi::Object& object) {
  RouterOptions routing;
  routing.top_k = static_cast<int>(integer(object, "topK"));
  const auto given = [&](const char* key) { return !object.Get(key).IsUndefined(); };
  if (given("renormalise")) routing.renormalise = object.Get("renormalise").ToBoolean().Value();
  if (given("scoringFunc")) {
    const std::string name = object.Get("scoringFunc").ToString().Utf8Value();
    if (name != "softmax" && name != "sigmoid") {
      throw to_error(object.Env(), Status(Code::kUsage, "scoringFunc must be softmax or sigmoid; found " + name));
    }
    routing.scoring = name == "softmax" ? Scoring::kSoftmax : Scoring::kSigmoid;
  }
  if (given("nGroup")) routing.n_group = static_cast<int>(integer(object, "nGroup"));
  if (given("topkGroup")) routing.topk_group = static_cast<int>(integer(object, "topkGroup"));
  if (object.Get("skipBelow").IsArray()) {
    const auto ratios = object.Get("skipBelow").As<Napi::Array>();
    for (uint32_t i = 0; i < ratios.Length(); ++i) {
      routing.skip_below.push_back(ratios.Get(i).As<Napi::Number>().FloatValue());
    }
  }
  if (given("routedScalingFactor")) routing.routed_scaling_factor = real(object, "routedScalingFactor");
  return routing;
}

RopeSpec read_rope(const Napi::Object& object) {
  RopeSpec rope;
  const auto frequencies = object.Get("inverseFrequencies").As<Napi::Float32Array>();
  rope.inverse_frequencies.assign(frequencies.Data(), frequencies.Data() + frequencies.ElementLength());
  rope.scale = real(object, "scale");
  return rope;
}

LayerSpec read_layer(const Napi::Object& object, const Files& files) {
  LayerSpec spec;
  spec.attention_norm = read_weight(object.Get("attentionNorm"), files);
  spec.attention = read_attention(child(object, "attention"), files);
  spec.feed_forward_norm = read_weight(object.Get("feedForwardNorm"), files);
  const auto parts = object.Get("feedForward").As<Napi::Array>();
  for (uint32_t i = 0; i < parts.Length(); ++i)
    spec.feed_forward.push_back(read_part(parts.Get(i).As<Napi::Object>(), files));
  return spec;
}

ModelSpec read_model(const Napi::Object& object, const Files& files) {
  ModelSpec spec;
  spec.hidden_size = integer(object, "hiddenSize");
  spec.vocabulary_size = integer(object, "vocabularySize");
  spec.max_positions = integer(object, "maxPositions");
  spec.norm_epsilon = real(object, "normEpsilon");
  spec.rope = read_rope(child(object, "rope"));
  spec.embedding = read_weight(object.Get("embedding"), files);
  spec.final_norm = read_weight(object.Get("finalNorm"), files);
  spec.head = read_weight(object.Get("head"), files);
  const auto layers = object.Get("layers").As<Napi::Array>();
  for (uint32_t i = 0; i < layers.Length(); ++i)
    spec.layers.push_back(read_layer(layers.Get(i).As<Napi::Object>(), files));
  return spec;
}

}  // namespace espalier::binding
