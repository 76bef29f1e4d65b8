// A GPU in one thread of the host: kernels compiled as C++ run as they would there, but slowly, one lane at a time.
//
// Every thread of a block is a fiber, which runs until it has to wait for others: lanes for those of their warp
// (`meet`), threads for barriers, and pollers for whoever writes what they look at (`pause`). A launch has as many
// blocks at a time as the emulated device has room for. Which warp goes on is drawn by lot, and what the device does on
// its own (copies, products of warpgroups) is done at once or as late as allowed, also by lot: what only works in one
// order fails for some seed. Where nobody can go on, the launch has hung, and the program ends with a list of who waits
// for what; so it does where a kernel leaves its shared memory, copies what is not aligned, or arrives too often.
//
// Not emulated: that memory is weakly ordered, that launches and streams overlap, and what anything costs.
#pragma once

#include <cuda_runtime_api.h>

#include <boost/context/fiber.hpp>
#include <boost/context/pooled_fixedsize_stack.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace emulated {

constexpr int kLanes = 32;
constexpr int kMultiprocessors = 16;
constexpr int kSharedBytes = 232448;     // that a block may have
constexpr int kAllSharedBytes = 233472;  // of a multiprocessor
constexpr int kThreadsOfMultiprocessor = 2048;
constexpr size_t kSharedRoom = 512 * 1024;  // for dynamic shared memory and variables

struct Block;
struct Cluster;
struct Warp;

// Work that is waited for group by group; the last group is open.
using Groups = std::vector<std::vector<std::function<void()>>>;

enum class State { kReady, kWaiting, kPolling, kDone };

struct Thread {
  uint3 index{};
  int lane = 0;
  Warp* warp = nullptr;
  State state = State::kReady;
  const char* waits_for = "";
  uint32_t detail = 0;
  boost::context::fiber fiber;
  // Copies that it started and has not waited for.
  Groups copies{1};
};

// What lanes do together: it is told what each of them brought, nullptr for those that do not take part, and their
// mask.
using Run = std::function<void(void* const*, uint32_t)>;

// Lanes of a warp that are about to do something together.
struct Meeting {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  const void* tag = nullptr;
  const Run* run = nullptr;  // of the first one to come, who waits
  void* brought[kLanes] = {};
};

struct Warp {
  Block* block = nullptr;
  Thread* threads = nullptr;
  int count = 0;
  int ready = 0;
  std::vector<Meeting> meetings;
  // Products of the warp's warpgroup that may still be under way, as the copies of a thread.
  Groups products{1};
};

// A number of arrivals that wakes who waits for them.
struct Gathering {
  int arrived = 0;
  std::vector<Thread*> waiting;
};

struct TransferBarrier {
  int arrivals = 0;
  int pending = 0;
  int64_t bytes = 0;  // expected and not there
  uint32_t phase = 0;
  std::vector<Thread*> waiting;
};

struct Block {
  uint3 index{};
  uint32_t rank = 0;  // in the cluster
  Cluster* cluster = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int alive = 0;
  std::vector<uint8_t> shared;
  std::map<std::pair<const char*, int>, size_t> variables;  // where in `shared` each lies, by file and line
  std::map<int, Gathering> barriers;                        // named
  std::map<uint32_t, TransferBarrier> transfers;            // by address
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  Gathering gathering;
  int alive = 0;  // threads
};

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  int cluster = 1;
  bool cooperative = false;

  // Clusters that the device has room for at a time.
  int resident_clusters() const;
};

// Runs a kernel to its end: `body` is called by every thread.
cudaError_t launch(const LaunchConfig& config, const std::function<void()>& body);

// What follows is for threads of a kernel.

Thread& current();
inline Block& block() { return *current().warp->block; }
std::mt19937& lots();

// Ends the program: a kernel did what the device does not allow.
[[noreturn]] void fault(const std::string& what);

// Waits for the other lanes of `mask` that come with this tag; then the `run` of one of them is called.
void meet(uint32_t mask, const void* tag, void* mine, const Run& run, const char* name);
// Lanes of a warp have ended: nobody waits for them.
void leave_meetings(Warp& warp);

// The same, with run(brought, lanes), where brought[l] points to what lane l brought.
template <class Args, class RunAll>
void together(uint32_t mask, Args& mine, const char* name, const RunAll& run) {
  static const char kTag = 0;  // one for each RunAll
  const Run run_all = [&](void* const* brought, uint32_t all) { run(reinterpret_cast<Args* const*>(brought), all); };
  meet(mask, &kTag, &mine, run_all, name);
}

// Waits until wake() is called for it.
void wait(const char* for_what, uint32_t detail);
void wake(std::vector<Thread*>& waiting);
// Lets others go on before this thread looks again at what it polls.
void pause();
// Says that something happened which a poller may have waited for.
void note_progress();

// Work of the device's own that may be done now or at any time later; before the launch ends it is.
void do_sometime(std::function<void()> work);
// Work that is done at the latest when finish_but(groups, left) is called with fewer groups after its own.
void do_in_group(Groups& groups, std::function<void()> work);
void finish_but(Groups& groups, size_t left);
void finish_all(Groups& groups);

}  // namespace emulated
