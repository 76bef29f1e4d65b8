// A fixed team of threads that runs loops. Results never depend on which thread ran what: callers partition by data.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

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

  int size() const { return size_; }

  // Calls body(begin, end) on disjoint ranges that cover [0, count), each at most `grain` long, and returns when all
  // are done. A thread takes its ranges one after the other from its own part of [0, count), so that what it reads
  // streams; then it helps the others. May be called from several threads (their loops run one after the other, in
  // turns), not from inside a body.
  template <class Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    if (count <= 0) return;
    if (count <= grain || size_ == 1) {
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

  // Kept out of this header, which most others include: the standard library's headers of threads are long.
  class Team;

  void run(int64_t count, int64_t grain, Call call, void* data);

  std::unique_ptr<Team> team_;
  int size_;
};

}  // namespace espalier
