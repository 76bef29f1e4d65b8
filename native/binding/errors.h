// Status → JavaScript error with `.code` (and `.tensor`); lib/native.ts turns it into an EspalierError.
#pragma once

#include <napi.h>

#include "core/status.h"

namespace espalier::binding {

inline Napi::Error to_error(Napi::Env env, const Status& status) {
  Napi::Error error = Napi::Error::New(env, status.message());
  error.Set("code", Napi::String::New(env, code_name(status.code())));
  if (!status.tensor().empty()) error.Set("tensor", Napi::String::New(env, status.tensor()));
  return error;
}

// Throws unless the status is ok.
inline void check(Napi::Env env, const Status& status) {
  if (!status.is_ok()) throw to_error(env, status);
}

}  // namespace espalier::binding
