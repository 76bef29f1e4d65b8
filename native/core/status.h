// A Status is the outcome of an operation that can fail. The library neither throws nor prints: errors travel as values
// up to the binding, which turns them into coded JavaScript errors. The names in kCodeNames are the public error codes;
// lib/errors.ts holds the same list with what each means (a test compares the two).
#pragma once

#include <optional>
#include <string>
#include <utility>

namespace espalier {

enum class Code {
  kOk,
  // safetensors files
  kHeaderTooSmall,
  kHeaderTooLarge,
  kHeaderLength,
  kHeaderJson,
  kDuplicateKey,
  kMetadata,
  kName,
  kDtype,
  kShape,
  kOverflow,
  kOffsets,
  kTrailing,
  kTruncated,
  kSize,
  kMisaligned,
  kNotAFile,
  kChanged,
  kSparse,
  // model description against tensors
  kConfig,
  kMismatch,
  // runs
  kUsage,
  kNonFinite,
  kContextFull,
  kDisposed,
  kAborted,
  kIo,
  kNoSpace,
  kOutOfMemory,
  kDevice,
  kInternal,
};

// The public name of a code, for example "HEADER_TOO_SMALL".
const char* code_name(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status ok() { return {}; }
  bool is_ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

  // The tensor the error is about, where there is one.
  const std::string& tensor() const { return tensor_; }
  Status&& with_tensor(std::string name) && {
    tensor_ = std::move(name);
    return std::move(*this);
  }

 private:
  Code code_ = Code::kOk;
  std::string message_;
  std::string tensor_;
};

// A value or the Status that says why there is none. value() may be called only when ok().
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {}  // NOLINT(google-explicit-constructor)

  bool is_ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() { return *value_; }
  const T& value() const { return *value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace espalier

#define ESPALIER_TRY(expression)                   \
  do {                                             \
    ::espalier::Status try_status_ = (expression); \
    if (!try_status_.is_ok()) return try_status_;  \
  } while (0)
