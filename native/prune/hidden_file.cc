#include "prune/hidden_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace espalier {
namespace {

Status describe(const std::string& path, const char* doing) {
  const int error = errno;
  const bool full = error == ENOSPC || error == EDQUOT;
  return {full ? Code::kNoSpace : Code::kIo, std::string("cannot ") + doing + " " + path + ": " + std::strerror(error)};
}

}  // namespace

HiddenFile::HiddenFile(std::string path, int descriptor, int64_t hidden)
    : path_(std::move(path)), descriptor_(descriptor), hidden_(hidden) {}

HiddenFile::HiddenFile(HiddenFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), hidden_(other.hidden_) {}

HiddenFile::~HiddenFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Result<HiddenFile> HiddenFile::open_for_reading(const std::string& path, int64_t hidden) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return describe(path, "open");
  return HiddenFile(path, descriptor, hidden);
}

Result<HiddenFile> HiddenFile::create(const std::string& path, int64_t hidden) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return describe(path, "create");
  return HiddenFile(path, descriptor, hidden);
}

Result<HiddenFile> HiddenFile::open_for_writing(const std::string& path, int64_t hidden) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0) return describe(path, "open");
  return HiddenFile(path, descriptor, hidden);
}

Result<HiddenFile> HiddenFile::create_temporary(const std::string& path, int64_t hidden) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (descriptor < 0) return describe(path, "create");
  HiddenFile file(path, descriptor, hidden);
  if (::unlink(path.c_str()) != 0) return file.system_error("make temporary");
  return file;
}

Status HiddenFile::system_error(const char* doing) const { return describe(path_, doing); }

Status HiddenFile::read(int64_t first, int64_t count, float* out) const {
  const int64_t row = hidden_ * static_cast<int64_t>(sizeof(float));
  auto* bytes = reinterpret_cast<char*>(out);
  int64_t offset = first * row;
  for (int64_t left = count * row; left > 0;) {
    const ssize_t got = ::pread(descriptor_, bytes, static_cast<size_t>(left), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error("read");
    if (got == 0) return {Code::kTruncated, path_ + " ends before the hidden states it must hold"};
    bytes += got;
    offset += got;
    left -= got;
  }
  return Status::ok();
}

Status HiddenFile::write(int64_t first, int64_t count, const float* data) {
  const int64_t row = hidden_ * static_cast<int64_t>(sizeof(float));
  const auto* bytes = reinterpret_cast<const char*>(data);
  int64_t offset = first * row;
  for (int64_t left = count * row; left > 0;) {
    const ssize_t done = ::pwrite(descriptor_, bytes, static_cast<size_t>(left), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return system_error("write");
    bytes += done;
    offset += done;
    left -= done;
  }
  return Status::ok();
}

void HiddenFile::begin_sync(int64_t first, int64_t count) {
  const int64_t row = hidden_ * static_cast<int64_t>(sizeof(float));
  ::sync_file_range(descriptor_, first * row, count * row, SYNC_FILE_RANGE_WRITE);
}

Status HiddenFile::sync() {
  if (::fsync(descriptor_) != 0) return system_error("write");
  return Status::ok();
}

}  // namespace espalier
