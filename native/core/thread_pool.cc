#include "core/thread_pool.h"

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace espalier {
namespace {

// A worker looks for the next loop this often before it sleeps: about 20 µs, which covers the gap between the loops of
// one step but leaves the cores to Node between steps.
constexpr int kSpins = 600;

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return CPU_COUNT(&set);
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

class ThreadPool::Team {
 public:
  explicit Team(int threads) : parts_(static_cast<size_t>(threads > 0 ? threads : usable_cores())) {
    // Where the system allows no more threads, those there are do the work.
    try {
      for (size_t i = 1; i < parts_.size(); ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error&) {
    }
  }
  ~Team() {
    {
      std::lock_guard lock(sleep_mutex_);
      stop_.store(true);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // With the calling thread.
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t count, int64_t grain, Call call, void* data);

 private:
  // The part of a loop that belongs to one thread; a cache line of its own.
  struct alignas(64) Part {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void take_ranges(size_t thread);
  void work(size_t thread);

  std::vector<std::thread> workers_;
  std::mutex callers_;  // one loop at a time
  std::mutex next_;     // held by who waits for it: who has just had a loop comes after them

  // The loop in progress; written by the caller while `open_` is false and `active_` is 0.
  Call call_ = nullptr;
  void* data_ = nullptr;
  int64_t grain_ = 1;
  std::vector<Part> parts_;        // [threads]; the caller's is the first
  std::atomic<bool> open_{false};  // workers may join the loop
  std::atomic<int> active_{0};     // workers that look at the loop or are inside it
  std::atomic<uint64_t> generation_{0};
  std::atomic<bool> stop_{false};

  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
};

void ThreadPool::Team::run(int64_t count, int64_t grain, Call call, void* data) {
  std::unique_lock waiting(next_);
  std::lock_guard caller(callers_);
  waiting.unlock();
  call_ = call;
  data_ = data;
  grain_ = grain;
  const auto parts = static_cast<int64_t>(parts_.size());
  for (int64_t i = 0; i < parts; ++i) {
    Part& part = parts_[static_cast<size_t>(i)];
    part.next.store(count * i / parts, std::memory_order_relaxed);
    part.end = count * (i + 1) / parts;
  }
  open_.store(true);
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) {
    // Taking the lock orders this wake-up after a worker's last look at `generation_`.
    { std::lock_guard lock(sleep_mutex_); }
    wake_.notify_all();
  }
  take_ranges(0);
  // All ranges are taken; a worker that is still asleep need not be waited for.
  open_.store(false);
  for (int spins = 0; active_.load() > 0; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::Team::take_ranges(size_t thread) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[(thread + i) % parts_.size()];
    for (;;) {
      const int64_t begin = part.next.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= part.end) break;
      call_(data_, begin, begin + grain_ < part.end ? begin + grain_ : part.end);
    }
  }
}

void ThreadPool::Team::work(size_t thread) {
  uint64_t seen = 0;
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen && !stop_.load(std::memory_order_relaxed)) {
      if (++spins < kSpins) {
        pause();
        continue;
      }
      std::unique_lock lock(sleep_mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return generation_.load() != seen || stop_.load(); });
      sleepers_.fetch_sub(1);
    }
    if (stop_.load()) return;
    seen = generation_.load();
    active_.fetch_add(1);
    if (open_.load()) take_ranges(thread);
    active_.fetch_sub(1);
  }
}

ThreadPool::ThreadPool(int threads) : team_(std::make_unique<Team>(threads)), size_(team_->size()) {}

ThreadPool::~ThreadPool() = default;

std::shared_ptr<ThreadPool> ThreadPool::shared(int threads) {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<ThreadPool>> pools;
  const int total = threads > 0 ? threads : usable_cores();
  std::lock_guard lock(mutex);
  std::shared_ptr<ThreadPool> pool = pools[total].lock();
  if (!pool) pools[total] = pool = std::make_shared<ThreadPool>(total);
  return pool;
}

void ThreadPool::run(int64_t count, int64_t grain, Call call, void* data) { team_->run(count, grain, call, data); }

}  // namespace espalier
