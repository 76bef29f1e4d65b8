#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "intrinsics.h"

namespace emulated {
namespace {

// Not a multiple of what caches alias by: threads go on one after the other, each at the end of its stack.
constexpr size_t kStackBytes = 128 * 1024 + 17 * 64;
// Rounds in which all that can go on are pollers, and nothing happens.
constexpr int kIdleRounds = 100000;

// Of all launches, so that their pages are the program's already.
boost::context::pooled_fixedsize_stack& stacks() {
  static boost::context::pooled_fixedsize_stack pool(kStackBytes);
  return pool;
}

class Machine {
 public:
  Machine(const LaunchConfig& config, const std::function<void()>& body) : config_(config), body_(body) {}

  void run() {
    const int clusters = static_cast<int>(config_.grid.x * config_.grid.y * config_.grid.z) / config_.cluster;
    const int most = config_.resident_clusters();
    blockDim = config_.block;
    gridDim = config_.grid;
    int begun = 0;
    while (true) {
      // What is still under way would not find its block.
      while (!work_.empty()) do_some_work();
      std::erase_if(clusters_, [](const auto& cluster) { return cluster->alive == 0; });
      blocks_.clear();
      for (; begun < clusters && static_cast<int>(clusters_.size()) < most; ++begun) begin_cluster(begun);
      if (clusters_.empty()) break;
      for (const auto& cluster : clusters_) {
        for (const auto& one : cluster->blocks) blocks_.push_back(one.get());
      }
      run_until_cluster_ends();
    }
  }

  void switch_out() { scheduler_ = std::move(scheduler_).resume(); }

  void add_work(std::function<void()> work) { work_.push_back(std::move(work)); }
  void note_progress() { idle_rounds_ = 0; }

  Thread* current = nullptr;

  [[noreturn]] void describe_hang(const char* title) {
    std::fprintf(stderr, "emulated GPU: %s\n", title);
    for (const Block* block : blocks_) {
      for (const Warp& warp : block->warps) {
        std::map<std::string, uint32_t> lanes;
        for (int l = 0; l < warp.count; ++l) {
          const Thread& thread = warp.threads[l];
          if (thread.state == State::kDone) continue;
          char what[160];
          std::snprintf(what, sizeof(what), "%s 0x%x", thread.state == State::kPolling ? "polling" : thread.waits_for,
                        thread.detail);
          lanes[what] |= 1u << l;
        }
        for (const auto& [what, mask] : lanes) {
          std::fprintf(stderr, "  block %u warp %td lanes %08x: %s\n", block->index.x, &warp - block->warps.data(),
                       mask, what.c_str());
        }
      }
    }
    std::abort();
  }

 private:
  void begin_cluster(int number) {
    auto cluster = std::make_unique<Cluster>();
    for (int rank = 0; rank < config_.cluster; ++rank) begin_block(*cluster, number * config_.cluster + rank, rank);
    clusters_.push_back(std::move(cluster));
  }

  void begin_block(Cluster& cluster, int number, int rank) {
    cluster.blocks.push_back(std::make_unique<Block>());
    Block& block = *cluster.blocks.back();
    const unsigned index = static_cast<unsigned>(number);
    block.index = {index % config_.grid.x, index / config_.grid.x % config_.grid.y,
                   index / (config_.grid.x * config_.grid.y)};
    block.rank = static_cast<uint32_t>(rank);
    block.cluster = &cluster;
    // Shared memory begins with what was there before.
    block.shared.reserve(kSharedRoom);  // never moved
    block.shared.resize((config_.shared_bytes + 1023) / 1024 * 1024);
    std::fill(block.shared.begin(), block.shared.end(), static_cast<uint8_t>(lots_()));
    const unsigned threads = config_.block.x * config_.block.y * config_.block.z;
    block.alive = static_cast<int>(threads);
    cluster.alive += block.alive;
    block.threads = std::vector<Thread>(threads);
    block.warps = std::vector<Warp>((threads + kLanes - 1) / kLanes);
    for (unsigned t = 0; t < threads; ++t) {
      Thread& thread = block.threads[t];
      thread.index = {t % config_.block.x, t / config_.block.x % config_.block.y,
                      t / (config_.block.x * config_.block.y)};
      thread.lane = static_cast<int>(t % kLanes);
      thread.warp = &block.warps[t / kLanes];
      Warp& warp = *thread.warp;
      if (thread.lane == 0) {
        warp.block = &block;
        warp.threads = &thread;
      }
      ++warp.count;
      ++warp.ready;
      thread.fiber = boost::context::fiber(std::allocator_arg, stacks(), [this](boost::context::fiber&& from) {
        scheduler_ = std::move(from);
        body_();
        end_thread();
        return std::move(scheduler_);
      });
    }
  }

  void end_thread() {
    Thread& thread = *current;
    finish_all(thread.copies);
    thread.state = State::kDone;
    Warp& warp = *thread.warp;
    --warp.ready;
    --warp.block->alive;
    --warp.block->cluster->alive;
    note_progress();
    leave_meetings(warp);
    for (auto& [name, gathering] : warp.block->barriers) {
      if (name == 0 && gathering.arrived > 0 && gathering.arrived == warp.block->alive) release(gathering);
    }
    Cluster& cluster = *warp.block->cluster;
    if (cluster.gathering.arrived > 0 && cluster.gathering.arrived == cluster.alive) release(cluster.gathering);
  }
  static void release(Gathering& gathering) {
    gathering.arrived = 0;
    wake(gathering.waiting);
  }

  void run_until_cluster_ends() {
    while (true) {
      ready_.clear();
      for (Block* block : blocks_) {
        for (Warp& warp : block->warps) {
          if (warp.ready > 0) ready_.push_back(&warp);
        }
      }
      if (ready_.empty()) {
        if (!work_.empty()) {
          do_some_work();
        } else {
          wake_pollers();
        }
        continue;
      }
      // Each warp that was ready has some turns, in an order drawn by lot.
      std::shuffle(ready_.begin(), ready_.end(), lots_);
      for (Warp* warp : ready_) {
        const uint32_t turns = 1 + lots_() % 8;
        for (uint32_t i = 0; i < turns && warp->ready > 0; ++i) run_warp(*warp);
        if (!work_.empty() && lots_() % 4 == 0) do_some_work();
      }
      for (const auto& cluster : clusters_) {
        if (cluster->alive == 0) return;
      }
    }
  }

  void run_warp(Warp& warp) {
    for (int l = 0; l < warp.count; ++l) {
      Thread& thread = warp.threads[l];
      if (thread.state != State::kReady) continue;
      current = &thread;
      threadIdx = thread.index;
      blockIdx = warp.block->index;
      thread.fiber = std::move(thread.fiber).resume();
      current = nullptr;
    }
  }

  void do_some_work() {
    const size_t which = lots_() % work_.size();
    std::swap(work_[which], work_.back());
    const std::function<void()> work = std::move(work_.back());
    work_.pop_back();
    work();
    note_progress();
  }

  void wake_pollers() {
    bool any = false;
    for (Block* block : blocks_) {
      for (Thread& thread : block->threads) {
        if (thread.state != State::kPolling) continue;
        thread.state = State::kReady;
        ++thread.warp->ready;
        any = true;
      }
    }
    if (!any) describe_hang("no thread can go on");
    if (++idle_rounds_ > kIdleRounds) describe_hang("threads poll what nobody will write");
  }

  LaunchConfig config_;
  const std::function<void()>& body_;
  boost::context::fiber scheduler_;
  std::mt19937& lots_ = lots();
  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<Block*> blocks_;
  std::vector<Warp*> ready_;
  std::vector<std::function<void()>> work_;
  int idle_rounds_ = 0;
};

Machine* g_machine = nullptr;

}  // namespace

int LaunchConfig::resident_clusters() const {
  const auto threads = static_cast<int>(block.x * block.y * block.z);
  const auto shared = static_cast<int>(shared_bytes) + 1024;
  return kMultiprocessors * std::min(kThreadsOfMultiprocessor / threads, kAllSharedBytes / shared) / cluster;
}

cudaError_t launch(const LaunchConfig& config, const std::function<void()>& body) {
  Machine machine(config, body);
  g_machine = &machine;
  machine.run();
  g_machine = nullptr;
  return cudaSuccess;
}

Thread& current() { return *g_machine->current; }

std::mt19937& lots() {
  static std::mt19937 generator([] {
    const char* seed = std::getenv("ESPALIER_TEST_SEED");
    const uint32_t number =
        seed != nullptr ? static_cast<uint32_t>(std::strtoul(seed, nullptr, 10)) : std::random_device{}();
    std::printf("emulated GPU: ESPALIER_TEST_SEED=%u\n", number);
    return number;
  }());
  return generator;
}

void fault(const std::string& what) {
  if (g_machine->current == nullptr) g_machine->describe_hang(what.c_str());
  const std::string title =
      what + ", thread " + std::to_string(current().index.x) + " of block " + std::to_string(block().index.x);
  g_machine->describe_hang(title.c_str());
}

void wait(const char* for_what, uint32_t detail) {
  Thread& thread = current();
  thread.state = State::kWaiting;
  thread.waits_for = for_what;
  thread.detail = detail;
  --thread.warp->ready;
  g_machine->switch_out();
}

void wake(std::vector<Thread*>& waiting) {
  for (Thread* thread : waiting) {
    thread->state = State::kReady;
    ++thread->warp->ready;
  }
  waiting.clear();
  note_progress();
}

void pause() {
  Thread& thread = current();
  thread.state = State::kPolling;
  --thread.warp->ready;
  g_machine->switch_out();
}

void note_progress() { g_machine->note_progress(); }

void do_sometime(std::function<void()> work) {
  if (lots()() % 4 == 0) {
    work();
  } else {
    g_machine->add_work(std::move(work));
  }
}

void do_in_group(Groups& groups, std::function<void()> work) {
  groups.back().push_back(std::move(work));
  if (lots()() % 4 != 0) return;
  for (auto& group : groups) {
    for (const auto& one : group) one();
    group.clear();
  }
}

void finish_but(Groups& groups, size_t left) {
  while (groups.size() > left + 1) {
    for (const auto& one : groups.front()) one();
    groups.erase(groups.begin());
  }
}

void finish_all(Groups& groups) {
  groups.emplace_back();
  finish_but(groups, 0);
}

}  // namespace emulated
