// A fixed team of threads that runs loops. Results never depend on which thread ran what: callers partition by data.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace espalier {

class ThreadPool {
 public:
  // `threads` counts the calling thread; 0 means one for each core that this process may use.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // The pool of that size, shared by all who hold it.
  static std::shared_ptr<ThreadPool> shared(int threads);

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) on disjoint ranges that cover [0, count), each at most `grain` long, and returns when all
  // are done. A thread takes its ranges one after the other from its own part of [0, count), so that what it reads
  // streams; then it helps the others. May be called from several threads (their loops run one after the other), not
  // from inside a body.
  template <class Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    if (count <= 0) return;
    if (count <= grain || workers_.empty()) {
      for (int64_t begin = 0; begin < count; begin += grain) body(begin, begin + grain < count ? begin + grain : count);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    run(
        count, grain, [](void* data, int64_t begin, int64_t end) { (*static_cast<Plain*>(data))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Call = void (*)(void*, int64_t, int64_t);

  // The part of a loop that belongs to one thread; a cache line of its own.
  struct alignas(64) Part {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void run(int64_t count, int64_t grain, Call call, void* data);
  void take_ranges(size_t thread);
  void work(size_t thread);

  std::vector<std::thread> workers_;
  std::mutex callers_;  // one loop at a time

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

}  // namespace espalier
