// Native work on the library's own threads, as JavaScript promises. Neither libuv's pool nor the event loop is ever
// held, and an environment that goes away (a worker thread that ends) cancels its jobs and waits for them.
#pragma once

#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <vector>

#include "core/status.h"

namespace espalier::binding {

class JobRunner;

// What a job's work may use, on its thread.
class JobContext {
 public:
  const std::atomic<bool>* cancel() const { return &cancel_; }
  bool cancelled() const { return cancel_.load(std::memory_order_relaxed); }
  void stop() { cancel_.store(true, std::memory_order_relaxed); }
  // Calls the job's onProgress(done, total) on the JavaScript thread, some time later.
  void progress(int64_t done, int64_t total);

 private:
  friend class JobRunner;
  std::atomic<bool> cancel_{false};
  std::function<void(int64_t, int64_t)> report_;
};

// A job: `work` runs on a library thread and touches nothing of JavaScript; `finish` makes the promise's value on the
// JavaScript thread.
struct JobRequest {
  std::function<Status(JobContext&)> work;
  std::function<Napi::Value(Napi::Env)> finish;
  Napi::Function on_progress;
};

// Starts a job; returns { promise, cancel() }.
Napi::Object start_job(Napi::Env env, JobRequest request);

// Must be called once for each environment, before any job.
void install_job_runner(Napi::Env env);

}  // namespace espalier::binding
