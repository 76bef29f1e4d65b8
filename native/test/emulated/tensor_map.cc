#include "tensor_map.h"

#include <algorithm>
#include <array>

#include "barriers.h"

namespace emulated {
namespace {

// What is in a CUtensorMap here.
struct Tensor {
  uint8_t* data;
  uint32_t rank;
  uint32_t element;  // bytes
  uint32_t turned;   // bits of an address that the bits 3 above are added to
  uint64_t sizes[5];
  uint64_t strides[5];  // bytes; of the first dimension, those of an element
  uint32_t box[5];
};
static_assert(sizeof(Tensor) <= sizeof(CUtensorMap));

struct Box {
  Tensor tensor;
  std::array<int, 5> at{};

  Box(const void* map, std::initializer_list<int> place) {
    std::memcpy(&tensor, map, sizeof(tensor));
    if (tensor.rank != place.size()) fault("a tensor of another number of dimensions");
    std::copy(place.begin(), place.end(), at.begin());
  }
  uint32_t bytes() const {
    uint32_t all = tensor.element;
    for (uint32_t d = 0; d < tensor.rank; ++d) all *= tensor.box[d];
    return all;
  }
  // visit(address in shared memory, element of the tensor or nullptr outside of it) for each.
  template <class Visit>
  void for_each(uint32_t address, const Visit& visit) const {
    std::array<uint32_t, 5> i{};
    for (uint32_t done = 0; done < bytes(); done += tensor.element) {
      uint8_t* element = tensor.data;
      for (uint32_t d = 0; d < tensor.rank && element != nullptr; ++d) {
        const int64_t coordinate = at[d] + static_cast<int64_t>(i[d]);
        const bool inside = coordinate >= 0 && coordinate < static_cast<int64_t>(tensor.sizes[d]);
        element = inside ? element + static_cast<uint64_t>(coordinate) * tensor.strides[d] : nullptr;
      }
      const uint32_t plain = address + done;
      visit(plain ^ (plain >> 3 & tensor.turned), element);
      for (uint32_t d = 0; d < tensor.rank && ++i[d] == tensor.box[d]; ++d) i[d] = 0;
    }
  }
};

uint32_t element_bytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return 4;
    default: return 0;
  }
}

uint32_t turned_bits(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE: return 0;
    case CU_TENSOR_MAP_SWIZZLE_32B: return 0x10;
    case CU_TENSOR_MAP_SWIZZLE_64B: return 0x30;
    default: return 0x70;
  }
}

}  // namespace

CUresult encode_tensor_map(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                           const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                           const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  Tensor tensor{};
  tensor.data = static_cast<uint8_t*>(address);
  tensor.rank = rank;
  tensor.element = element_bytes(type);
  tensor.turned = turned_bits(swizzle);
  bool is_valid = rank >= 1 && rank <= 5 && tensor.element > 0 && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  for (cuuint32_t d = 0; is_valid && d < rank; ++d) {
    tensor.sizes[d] = sizes[d];
    tensor.strides[d] = d == 0 ? tensor.element : strides[d - 1];
    tensor.box[d] = box[d];
    is_valid = sizes[d] > 0 && box[d] >= 1 && box[d] <= 256 && steps[d] == 1 && (d == 0 || strides[d - 1] % 16 == 0);
  }
  // Rows of a box are as wide as what is turned around at most.
  const uint32_t row = is_valid ? tensor.box[0] * tensor.element : 0;
  if (!is_valid || row % 16 != 0 || (tensor.turned != 0 && row > tensor.turned + 16)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(map, &tensor, sizeof(tensor));
  return CUDA_SUCCESS;
}

void tensor_load(uint32_t blocks, uint32_t to, const void* tensor, std::initializer_list<int> at, uint32_t barrier) {
  const Box box(tensor, at);
  if (to % 128 != 0) fault("a box at an unaligned address");
  auto& all = block().cluster->blocks;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if ((blocks >> rank & 1) == 0) continue;
    Block& there = *all[rank];
    shared_at(there, to, box.bytes(), 128);
    do_sometime([box, &there, to, barrier] {
      box.for_each(to, [&](uint32_t address, const uint8_t* element) {
        uint8_t* const place = shared_at(there, address, box.tensor.element, box.tensor.element);
        if (element != nullptr) {
          std::memcpy(place, element, box.tensor.element);
        } else {
          std::memset(place, 0, box.tensor.element);
        }
      });
      transfer_complete(there, barrier, box.bytes());
    });
  }
}

void tensor_store(const void* tensor, std::initializer_list<int> at, uint32_t from) {
  const Box box(tensor, at);
  if (from % 128 != 0) fault("a box at an unaligned address");
  Block& own = block();
  do_in_group(current().copies, [box, &own, from] {
    box.for_each(from, [&](uint32_t address, uint8_t* element) {
      if (element == nullptr) return;
      std::memcpy(element, shared_at(own, address, box.tensor.element, box.tensor.element), box.tensor.element);
    });
  });
}

}  // namespace emulated
