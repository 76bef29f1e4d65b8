// Shared memory: what a block has of it, and addresses in the shared window, of a thread's own block or of another one
// of its cluster.
#pragma once

#include <cstring>

#include "machine.h"

namespace emulated {

// Where the window begins: 0 is no address of anything.
constexpr uint32_t kFirstAddress = 1024;
// Bits of an address; those above say which block of the cluster, from 1 on, or 0 for the thread's own.
constexpr int kAddressBits = 24;

uint8_t* dynamic_shared();
// A variable of a block, known by where it is declared.
uint8_t* shared_variable(size_t bytes, const char* file, int line);
uint32_t shared_address(const void* pointer);
Block& block_of(uint32_t address);
// Where `bytes` bytes from an address on lie; they must be the block's and aligned.
uint8_t* shared_at(uint32_t address, uint32_t bytes, uint32_t alignment);
uint8_t* shared_at(Block& block, uint32_t address, uint32_t bytes, uint32_t alignment);

template <class T>
T load_shared(uint32_t from) {
  T value;
  std::memcpy(&value, shared_at(from, sizeof(T), sizeof(T)), sizeof(T));
  return value;
}
template <class T>
void store_shared(uint32_t to, const T& value) {
  std::memcpy(shared_at(to, sizeof(T), sizeof(T)), &value, sizeof(T));
  note_progress();
}

}  // namespace emulated
