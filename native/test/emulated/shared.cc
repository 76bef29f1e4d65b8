#include "shared.h"

namespace emulated {

uint8_t* dynamic_shared() { return block().shared.data(); }

uint8_t* shared_variable(size_t bytes, const char* file, int line) {
  Block& own = block();
  const auto known = own.variables.find({file, line});
  if (known != own.variables.end()) return own.shared.data() + known->second;
  const size_t at = (own.shared.size() + 127) / 128 * 128;
  if (at + bytes > kSharedRoom) fault("too many variables in shared memory");
  own.shared.resize(at + bytes, 0xa5);
  own.variables[{file, line}] = at;
  return own.shared.data() + at;
}

uint32_t shared_address(const void* pointer) {
  const Block& own = block();
  const auto offset = static_cast<const uint8_t*>(pointer) - own.shared.data();
  if (offset < 0 || offset > static_cast<int64_t>(own.shared.size())) fault("not in shared memory");
  return kFirstAddress + static_cast<uint32_t>(offset);
}

Block& block_of(uint32_t address) {
  const uint32_t number = address >> kAddressBits;
  if (number == 0) return block();
  auto& blocks = block().cluster->blocks;
  if (number > blocks.size()) fault("an address in no block of the cluster");
  return *blocks[number - 1];
}

uint8_t* shared_at(uint32_t address, uint32_t bytes, uint32_t alignment) {
  return shared_at(block_of(address), address, bytes, alignment);
}

uint8_t* shared_at(Block& block, uint32_t address, uint32_t bytes, uint32_t alignment) {
  const int64_t offset = static_cast<int64_t>(address & ((1u << kAddressBits) - 1)) - kFirstAddress;
  if (offset % alignment != 0) fault("an unaligned address in shared memory");
  if (offset < 0 || offset + bytes > static_cast<int64_t>(block.shared.size())) fault("beyond shared memory");
  return block.shared.data() + offset;
}

}  // namespace emulated
