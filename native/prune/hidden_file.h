// Hidden states on disk: float32 [tokens, hidden], native byte order. They are as large as the calibration set and live
// between two layers, so they are written once and read back in pieces, and a stopped run finds them again.
#pragma once

#include <cstdint>
#include <string>

#include "core/status.h"

namespace espalier {

class HiddenFile {
 public:
  static Result<HiddenFile> open_for_reading(const std::string& path, int64_t hidden);
  // Creates the file or empties an old one.
  static Result<HiddenFile> create(const std::string& path, int64_t hidden);
  // Leaves what is there, and creates the file if it is not.
  static Result<HiddenFile> open_for_writing(const std::string& path, int64_t hidden);
  // One to write and read that is gone with the object, even if the process dies: `path` is only where it lies.
  static Result<HiddenFile> create_temporary(const std::string& path, int64_t hidden);

  HiddenFile(HiddenFile&& other) noexcept;
  HiddenFile& operator=(HiddenFile&&) = delete;
  ~HiddenFile();

  // Rows [first, first + count). kTruncated where the file ends before.
  Status read(int64_t first, int64_t count, float* out) const;
  Status write(int64_t first, int64_t count, const float* data);
  // Begins to bring these rows to the disk, so that sync() finds little left; a wish, which has no errors.
  void begin_sync(int64_t first, int64_t count);
  // Brings what was written to the disk.
  Status sync();

 private:
  HiddenFile(std::string path, int descriptor, int64_t hidden);
  Status system_error(const char* doing) const;

  std::string path_;
  int descriptor_ = -1;
  int64_t hidden_ = 0;
};

}  // namespace espalier
