#include "core/status.h"

namespace espalier {

const char* code_name(Code code) {
  switch (code) {
    case Code::kOk: return "OK";
    case Code::kHeaderTooSmall: return "HEADER_TOO_SMALL";
    case Code::kHeaderTooLarge: return "HEADER_TOO_LARGE";
    case Code::kHeaderLength: return "HEADER_LENGTH";
    case Code::kHeaderJson: return "HEADER_JSON";
    case Code::kDuplicateKey: return "DUPLICATE_KEY";
    case Code::kMetadata: return "METADATA";
    case Code::kName: return "NAME";
    case Code::kDtype: return "DTYPE";
    case Code::kShape: return "SHAPE";
    case Code::kOverflow: return "OVERFLOW";
    case Code::kOffsets: return "OFFSETS";
    case Code::kTrailing: return "TRAILING";
    case Code::kTruncated: return "TRUNCATED";
    case Code::kSize: return "SIZE";
    case Code::kMisaligned: return "MISALIGNED";
    case Code::kNotAFile: return "NOT_A_FILE";
    case Code::kChanged: return "CHANGED";
    case Code::kSparse: return "SPARSE";
    case Code::kConfig: return "CONFIG";
    case Code::kMismatch: return "MISMATCH";
    case Code::kUsage: return "USAGE";
    case Code::kNonFinite: return "NONFINITE";
    case Code::kContextFull: return "CONTEXT_FULL";
    case Code::kDisposed: return "DISPOSED";
    case Code::kAborted: return "ABORTED";
    case Code::kIo: return "IO";
    case Code::kNoSpace: return "NO_SPACE";
    case Code::kOutOfMemory: return "OUT_OF_MEMORY";
    case Code::kDevice: return "DEVICE";
    case Code::kInternal: return "INTERNAL";
  }
  return "INTERNAL";
}

}  // namespace espalier
