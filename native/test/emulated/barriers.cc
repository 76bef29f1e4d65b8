#include "barriers.h"

namespace emulated {
namespace {

void gather(Gathering& gathering, int wanted, const char* name, uint32_t detail) {
  if (++gathering.arrived == wanted) {
    gathering.arrived = 0;
    wake(gathering.waiting);
    return;
  }
  gathering.waiting.push_back(&current());
  wait(name, detail);
}

constexpr uint32_t kOffset = (1u << kAddressBits) - 1;

TransferBarrier& find(Block& block, uint32_t barrier) {
  const auto found = block.transfers.find(barrier & kOffset);
  if (found == block.transfers.end()) fault("a barrier that was not initialised");
  return found->second;
}

void end_phase(TransferBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.arrivals;
  wake(barrier.waiting);
}

}  // namespace

void named_barrier(int name, int threads) {
  gather(block().barriers[name], threads, "a named barrier", static_cast<uint32_t>(name));
}

void sync_threads() { gather(block().barriers[0], block().alive, "__syncthreads", 0); }

void cluster_barrier() {
  Cluster& cluster = *block().cluster;
  gather(cluster.gathering, cluster.alive, "a barrier of the cluster", 0);
}

void transfer_init(uint32_t barrier, uint32_t arrivals) {
  shared_at(barrier, 8, 8);
  TransferBarrier& made = block().transfers[barrier & kOffset];
  made = {};
  made.arrivals = static_cast<int>(arrivals);
  made.pending = made.arrivals;
}

void transfer_expect(uint32_t barrier, uint32_t bytes) { find(block_of(barrier), barrier).bytes += bytes; }

void transfer_arrive(uint32_t barrier) {
  TransferBarrier& found = find(block_of(barrier), barrier);
  if (--found.pending < 0) fault("more arrivals than a barrier waits for");
  end_phase(found);
}

void transfer_complete(Block& block, uint32_t barrier, uint32_t bytes) {
  TransferBarrier& found = find(block, barrier);
  found.bytes -= bytes;
  end_phase(found);
}

bool transfer_is_complete(uint32_t barrier, uint32_t parity) { return find(block(), barrier).phase != parity; }

void transfer_wait(uint32_t barrier, uint32_t parity) {
  TransferBarrier& found = find(block(), barrier);
  while (found.phase == parity) {
    found.waiting.push_back(&current());
    wait(parity == 0 ? "a barrier's phase of parity 0" : "a barrier's phase of parity 1", barrier);
  }
}

}  // namespace emulated
