// A regular file mapped for reading. Thread-safe: nothing changes after open.
//
// The bytes at data() may be touched only while the file keeps its size: if another process truncates it, touching the
// pages that went raises SIGBUS. Call check_unchanged() before long use of data(), or use read(), which cannot fault.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <string>

#include "core/status.h"

namespace espalier {

class MappedFile {
 public:
  // NOT_A_FILE for what is missing or no regular file (opening never waits, not even on a FIFO); IO when refused.
  static Result<std::shared_ptr<MappedFile>> open(const std::string& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Null when the file is empty. The mapping starts at a page, the tensors in it at any byte.
  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // CHANGED unless the path still leads to this very file, with the size and modification time it had when opened.
  Status check_unchanged() const;

  // Copies [offset, offset + length) to `out`. CHANGED if the file is no longer what was opened; USAGE if the range is
  // not inside it.
  Status read(uint64_t offset, uint64_t length, void* out) const;

 private:
  MappedFile() = default;

  std::string path_;  // absolute, so that a change of the working directory does not matter
  int descriptor_ = -1;
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
  timespec modified_ = {};
  uint64_t device_ = 0;
  uint64_t inode_ = 0;
};

}  // namespace espalier
