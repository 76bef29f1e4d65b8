// The JavaScript class SafetensorsFile (typed in lib/native.ts), and how other bindings get at the mapping inside.
#pragma once

#include <napi.h>

#include <memory>

#include "checkpoint/mapped_file.h"

namespace espalier::binding {

// The file behind a SafetensorsFile. Throws USAGE for any other value and DISPOSED after dispose(). The mapping lives
// as long as the pointer, also when JavaScript disposes of its handle.
std::shared_ptr<MappedFile> mapped_file_of(const Napi::Value& value);

}  // namespace espalier::binding
