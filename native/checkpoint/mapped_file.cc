#include "checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace espalier {
namespace {

Status system_error(const std::string& path) {
  const int error = errno;
  const bool missing = error == ENOENT || error == ENOTDIR || error == ELOOP || error == ENXIO;
  return Status(missing ? Code::kNotAFile : Code::kIo, "cannot open " + path + ": " + std::strerror(error));
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

Status check_regular(const std::string& path, mode_t mode) {
  if (S_ISREG(mode)) return Status::ok();
  return Status(Code::kNotAFile, path + " is " + kind_of(mode) + ", not a regular file");
}

bool same_time(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

}  // namespace

Result<std::shared_ptr<MappedFile>> MappedFile::open(const std::string& path) {
  if (path.find('\0') != std::string::npos) return Status(Code::kNotAFile, "the path holds a NUL character");
  struct stat found;
  // Looked at before it is opened, because opening a device can itself do something.
  if (::stat(path.c_str(), &found) != 0) return system_error(path);
  ESPALIER_TRY(check_regular(path, found.st_mode));

  std::shared_ptr<MappedFile> file(new MappedFile);
  std::error_code ignored;
  file->path_ = std::filesystem::absolute(path, ignored).string();
  file->descriptor_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (file->descriptor_ < 0) return system_error(path);
  if (::fstat(file->descriptor_, &found) != 0) return system_error(path);
  ESPALIER_TRY(check_regular(path, found.st_mode));
  file->size_ = static_cast<uint64_t>(found.st_size);
  file->modified_ = found.st_mtim;
  file->device_ = found.st_dev;
  file->inode_ = found.st_ino;
  if (file->size_ == 0) return file;
  void* const data = ::mmap(nullptr, file->size_, PROT_READ, MAP_SHARED, file->descriptor_, 0);
  if (data == MAP_FAILED) {
    return Status(errno == ENOMEM ? Code::kOutOfMemory : Code::kIo,
                  "cannot map " + path + " (" + std::to_string(file->size_) + " bytes): " + std::strerror(errno));
  }
  file->data_ = static_cast<uint8_t*>(data);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status MappedFile::check_unchanged() const {
  struct stat now;
  if (::fstat(descriptor_, &now) != 0) return system_error(path_);
  if (static_cast<uint64_t>(now.st_size) != size_ || !same_time(now.st_mtim, modified_)) {
    return Status(Code::kChanged, path_ + " was modified while it was in use (it had " + std::to_string(size_) +
                                      " bytes, now it has " + std::to_string(now.st_size) + ")");
  }
  if (::stat(path_.c_str(), &now) != 0 || now.st_dev != device_ || now.st_ino != inode_) {
    return Status(Code::kChanged, path_ + " was replaced or removed while it was in use");
  }
  return Status::ok();
}

Status MappedFile::read(uint64_t offset, uint64_t length, void* out) const {
  if (offset > size_ || length > size_ - offset) {
    return Status(Code::kUsage, "bytes [" + std::to_string(offset) + ", " + std::to_string(offset + length) +
                                    ") are not inside " + path_ + ", which has " + std::to_string(size_));
  }
  auto* to = static_cast<uint8_t*>(out);
  while (length > 0) {
    const ssize_t got = ::pread(descriptor_, to, length, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Status(Code::kIo, "cannot read " + path_ + ": " + std::strerror(errno));
    if (got == 0) return Status(Code::kChanged, path_ + " was truncated while it was in use");
    to += got;
    offset += static_cast<uint64_t>(got);
    length -= static_cast<uint64_t>(got);
  }
  return check_unchanged();
}

}  // namespace espalier
