// packMeasure, packWeight, packedHeader, packedRead: weights packed for a file, and read back from one.
#include "binding/errors.h"
#include "binding/exports.h"
#include "binding/job.h"
#include "binding/safetensors_file.h"
#include "binding/spec_reader.h"
#include "engine/packed_weight.h"

namespace espalier::binding {
namespace {

struct Request {
  WeightRef ref;
  WeightPolicy policy;
  int threads;
};

// (weight, files, precision, threads)
Request read_request(const Napi::CallbackInfo& info) {
  return {read_weight(info[0], read_files(info[1].As<Napi::Array>())),
          {.precision = read_precision(info[2])},
          info[3].As<Napi::Number>().Int32Value()};
}

// packMeasure(weight, files, precision, threads) → job of the bytes that packWeight gives
Napi::Value measure(const Napi::CallbackInfo& info) {
  auto bytes = std::make_shared<int64_t>(0);
  JobRequest job;
  job.work = [request = read_request(info), bytes](JobContext&) -> Status {
    const Result<int64_t> measured = measure_weight(*ThreadPool::shared(request.threads), request.policy, request.ref);
    if (measured.is_ok()) *bytes = measured.value();
    return measured.status();
  };
  job.finish = [bytes](Napi::Env env) { return Napi::Number::New(env, static_cast<double>(*bytes)); };
  return start_job(info.Env(), std::move(job));
}

// packWeight(weight, files, precision, threads) → job of the block as a Uint8Array
Napi::Value pack(const Napi::CallbackInfo& info) {
  auto packed = std::make_shared<PackedMatrix>();
  JobRequest job;
  job.work = [request = read_request(info), packed](JobContext&) -> Status {
    Result<PackedMatrix> made = pack_weight(*ThreadPool::shared(request.threads), request.policy, request.ref);
    if (!made.is_ok()) return made.status();
    *packed = std::move(made.value());
    return Status::ok();
  };
  job.finish = [packed](Napi::Env env) -> Napi::Value {
    auto block = Napi::Uint8Array::New(env, static_cast<size_t>(packed->block_bytes()));
    std::copy_n(packed->block(), packed->block_bytes(), block.Data());
    return block;
  };
  return start_job(info.Env(), std::move(job));
}

// A range of a file, checked against it.
struct Range {
  std::shared_ptr<MappedFile> file;
  int64_t begin;
  int64_t bytes;
};

Range read_range(const Napi::CallbackInfo& info) {
  Range range{mapped_file_of(info[0]), info[1].As<Napi::Number>().Int64Value(), 0};
  const int64_t end = info[2].As<Napi::Number>().Int64Value();
  range.bytes = end - range.begin;
  if (range.begin < 0 || range.bytes < 0 || end > static_cast<int64_t>(range.file->size()))
    throw to_error(info.Env(), Status(Code::kInternal, "a packed matrix lies outside its file"));
  return range;
}

// packedHeader(file, begin, end) → { rows, cols, dtype, format, storage, values }
Napi::Value describe(const Napi::CallbackInfo& info) {
  const Range range = read_range(info);
  uint8_t header[kBlockHeader] = {};
  const int64_t held = std::min<int64_t>(range.bytes, kBlockHeader);
  check(info.Env(), range.file->read(static_cast<uint64_t>(range.begin), static_cast<uint64_t>(held), header));
  const Result<PackedBlock> block = PackedBlock::read_header(header, range.bytes);
  check(info.Env(), block.status());
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("rows", static_cast<double>(block.value().rows));
  object.Set("cols", static_cast<double>(block.value().cols));
  object.Set("dtype", dtype_name(block.value().source));
  object.Set("format", block.value().format.name());
  return object;
}

// packedRead(file, begin, end) → its elements as a dense matrix of the type that it was packed from
Napi::Value read(const Napi::CallbackInfo& info) {
  const Range range = read_range(info);
  check(info.Env(), range.file->check_unchanged());
  const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(0);
  const Result<PackedMatrix> matrix =
      PackedMatrix::from_block(*pool, range.file, range.file->data() + range.begin, range.bytes);
  check(info.Env(), matrix.status());
  const std::vector<uint8_t> bytes = unpack_to_source(*pool, matrix.value());
  auto out = Napi::Uint8Array::New(info.Env(), bytes.size());
  std::copy(bytes.begin(), bytes.end(), out.Data());
  return out;
}

}  // namespace

void export_packing(Napi::Env env, Napi::Object exports) {
  exports.Set("packMeasure", Napi::Function::New(env, measure));
  exports.Set("packWeight", Napi::Function::New(env, pack));
  exports.Set("packedHeader", Napi::Function::New(env, describe));
  exports.Set("packedRead", Napi::Function::New(env, read));
}

}  // namespace espalier::binding
