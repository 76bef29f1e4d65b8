#include "binding/job.h"

#include <new>

#include "binding/errors.h"

namespace espalier::binding {
namespace {

struct Job {
  explicit Job(Napi::Env env) : deferred(Napi::Promise::Deferred::New(env)) {}

  std::function<Status(JobContext&)> work;
  std::function<Napi::Value(Napi::Env)> finish;
  Napi::Promise::Deferred deferred;
  Napi::FunctionReference on_progress;
  JobContext context;
  // Written by the thread that works, before it asks the JavaScript thread to settle the promise.
  Status status;
  // Of the JavaScript thread alone.
  Status progress_status;
};

Status run_guarded(Job& job) {
  try {
    return job.work(job.context);
  } catch (const std::bad_alloc&) {
    return {Code::kOutOfMemory, "not enough memory"};
  } catch (const std::exception& error) {
    return {Code::kInternal, error.what()};
  }
}

void settle(Napi::Env env, Job& job) {
  for (const Status* status : {&job.progress_status, &job.status}) {
    if (status->is_ok()) continue;
    job.deferred.Reject(to_error(env, *status).Value());
    return;
  }
  try {
    job.deferred.Resolve(job.finish(env));
  } catch (const Napi::Error& error) {
    job.deferred.Reject(error.Value());
  }
}

}  // namespace

// The jobs of one environment. Threads are made on demand, one for each job that runs at the same time, and reused.
class JobRunner {
 public:
  explicit JobRunner(Napi::Env env)
      : calls_(Napi::ThreadSafeFunction::New(env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}),
                                             "espalier jobs", 0, 1)) {
    calls_.Unref(env);
    env.AddCleanupHook([](JobRunner* runner) { runner->shut_down(); }, this);
  }

  void submit(Napi::Env env, std::shared_ptr<Job> job) {
    job->context.report_ = [this, weak = std::weak_ptr<Job>(job)](int64_t done, int64_t total) {
      call([weak, done, total](Napi::Env on) {
        const std::shared_ptr<Job> alive = weak.lock();
        if (!alive || alive->on_progress.IsEmpty()) return;
        // A throwing progress callback stops the job; the promise tells why.
        try {
          alive->on_progress.Call(
              {Napi::Number::New(on, static_cast<double>(done)), Napi::Number::New(on, static_cast<double>(total))});
        } catch (const Napi::Error& error) {
          alive->context.stop();
          alive->progress_status = Status(Code::kInternal, "onProgress threw: " + error.Message());
        }
      });
    };
    std::lock_guard lock(mutex_);
    if (idle_ <= static_cast<int>(queue_.size())) {
      // Throws where the system allows no more threads; nothing is queued by then.
      threads_.emplace_back([this] { work(); });
    }
    // While a job runs, the process must not end for lack of other work.
    if (active_.empty()) calls_.Ref(env);
    active_.insert(job);
    queue_.push_back(std::move(job));
    wake_.notify_one();
  }

 private:
  using Callback = std::function<void(Napi::Env)>;

  void call(Callback callback) {
    if (closing_.load()) return;
    auto* owned = new Callback(std::move(callback));
    const napi_status status = calls_.BlockingCall(owned, [](Napi::Env env, Napi::Function, Callback* data) {
      const std::unique_ptr<Callback> mine(data);
      // Node hands over a null environment while it tears down.
      if (static_cast<napi_env>(env) != nullptr) (*mine)(env);
    });
    if (status != napi_ok) delete owned;
  }

  void work() {
    for (;;) {
      std::shared_ptr<Job> job;
      {
        std::unique_lock lock(mutex_);
        ++idle_;
        wake_.wait(lock, [this] { return !queue_.empty() || closing_.load(); });
        --idle_;
        if (queue_.empty()) return;
        job = std::move(queue_.front());
        queue_.pop_front();
      }
      Status status = job->context.cancelled() ? Status(Code::kAborted, "stopped") : run_guarded(*job);
      job->status = std::move(status);
      // `active_` keeps the job alive, so that its JavaScript references are only ever released on the JavaScript
      // thread.
      Job* raw = job.get();
      job.reset();
      call([this, raw](Napi::Env env) { finish(env, raw); });
    }
  }

  void finish(Napi::Env env, Job* raw) {
    std::shared_ptr<Job> job;
    {
      std::lock_guard lock(mutex_);
      for (auto it = active_.begin(); it != active_.end(); ++it) {
        if (it->get() != raw) continue;
        job = *it;
        active_.erase(it);
        break;
      }
      if (active_.empty()) calls_.Unref(env);
    }
    if (job) settle(env, *job);
  }

  // On the JavaScript thread, while the environment goes away: nothing is settled any more.
  void shut_down() {
    {
      std::lock_guard lock(mutex_);
      closing_.store(true);
      for (const std::shared_ptr<Job>& job : active_) job->context.stop();
      queue_.clear();
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    active_.clear();
    calls_.Abort();
    delete this;
  }

  Napi::ThreadSafeFunction calls_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> queue_;
  std::unordered_set<std::shared_ptr<Job>> active_;
  std::vector<std::thread> threads_;
  int idle_ = 0;
  std::atomic<bool> closing_{false};
};

void JobContext::progress(int64_t done, int64_t total) { report_(done, total); }

namespace {
// The runner frees itself in its cleanup hook, which comes before.
void keep(Napi::Env, JobRunner*) {}
}  // namespace

void install_job_runner(Napi::Env env) { env.SetInstanceData<JobRunner, keep>(new JobRunner(env)); }

Napi::Object start_job(Napi::Env env, JobRequest request) {
  auto job = std::make_shared<Job>(env);
  job->work = std::move(request.work);
  job->finish = std::move(request.finish);
  if (!request.on_progress.IsEmpty()) job->on_progress = Napi::Persistent(request.on_progress);

  Napi::Object handle = Napi::Object::New(env);
  handle.Set("promise", job->deferred.Promise());
  handle.Set("cancel", Napi::Function::New(env, [weak = std::weak_ptr<Job>(job)](const Napi::CallbackInfo&) {
               if (const std::shared_ptr<Job> alive = weak.lock()) alive->context.stop();
             }));
  env.GetInstanceData<JobRunner>()->submit(env, std::move(job));
  return handle;
}

}  // namespace espalier::binding
