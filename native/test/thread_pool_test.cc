#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "test_main.h"

using namespace espalier;

namespace {

// Runs a loop and says whether every index was visited once, in ranges no longer than `grain`.
bool covers(ThreadPool& pool, int64_t count, int64_t grain) {
  std::vector<std::atomic<int>> visits(static_cast<size_t>(std::max<int64_t>(count, 0)));
  std::atomic<int> wrong{0};
  pool.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    if (begin < 0 || end > count || begin >= end || end - begin > grain) ++wrong;
    for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
  });
  return wrong == 0 && std::all_of(visits.begin(), visits.end(), [](const auto& v) { return v == 1; });
}

}  // namespace

TEST_CASE("a loop visits every index once, for pools and loops of all sizes") {
  for (int size = 1; size <= 5; ++size) {
    ThreadPool pool(size);
    CHECK(pool.size() == size);
    for (const int64_t count : {-1, 0, 1, 2, 7, 63, 64, 65, 1000}) {
      for (const int64_t grain : {1, 3, 64, 5000}) {
        CAPTURE(size);
        CAPTURE(count);
        CAPTURE(grain);
        CHECK(covers(pool, count, grain));
      }
    }
  }
}

TEST_CASE("no range is lost in many tiny loops, awake or asleep") {
  std::mt19937 random(test::fresh_seed());
  for (const int size : {2, 3, 5}) {
    ThreadPool pool(size);
    int lost = 0;
    for (int i = 0; i < 3000; ++i) {
      lost += covers(pool, 1 + static_cast<int64_t>(random() % 9), 1) ? 0 : 1;
      // Now and then long enough for the workers to fall asleep.
      if (i % 100 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 400));
    }
    CHECK(lost == 0);
  }
}

TEST_CASE("what a body wrote is seen by the caller when the loop is over") {
  ThreadPool pool(4);
  std::vector<int64_t> values(1000);
  for (int64_t round = 1; round <= 500; ++round) {
    pool.parallel_for(1000, 10, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += i * round;
    });
  }
  int wrong = 0;
  for (int64_t i = 0; i < 1000; ++i) wrong += values[static_cast<size_t>(i)] != i * (500 * 501 / 2) ? 1 : 0;
  CHECK(wrong == 0);
}

TEST_CASE("callers on several threads share a pool, each with loops of its own") {
  const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(3);
  CHECK(ThreadPool::shared(3) == pool);
  CHECK(ThreadPool::shared(2) != pool);
  std::atomic<int> lost{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 400; ++i) lost += covers(*pool, 5 + caller * 13 + i % 7, 2) ? 0 : 1;
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(lost == 0);
}

TEST_CASE("a caller with one loop after the other lets others in between") {
  ThreadPool pool(2);
  std::atomic<bool> stop{false};
  std::atomic<int> loops{0};
  // Leaves a core free for whoever waits, so that it does not get its turn by taking the caller's core.
  const auto work = [](int64_t begin, int64_t) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(begin == 0 ? 1 : 0);
    while (std::chrono::steady_clock::now() < end) continue;
  };
  std::thread busy([&] {
    while (!stop.load()) {
      pool.parallel_for(2, 1, work);
      loops.fetch_add(1);
    }
  });
  int waited = 0;
  for (int i = 0; i < 20; ++i) {
    for (const int from = loops.load(); loops.load() < from + 2;) std::this_thread::yield();
    // In the middle of a loop, and so asleep when it ends.
    std::this_thread::sleep_for(std::chrono::microseconds(500));
    const int before = loops.load();
    int now = 0;
    pool.parallel_for(2, 1, [&](int64_t begin, int64_t) {
      if (begin == 0) now = loops.load();
    });
    waited += now - before;
  }
  stop.store(true);
  busy.join();
  // One loop each, and what passes while the system lets a thread sleep; without turns it is hundreds.
  CHECK(waited < 100);
}

TEST_CASE("pools come and go while their workers are awake or asleep") {
  int lost = 0;
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(1 + i % 5);
    if (i % 3 != 0) lost += covers(pool, 20, 1) ? 0 : 1;
    if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  CHECK(lost == 0);
}
