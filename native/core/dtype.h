// Element types as safetensors names them, and the conversions between the floating-point ones that we compute with.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

namespace espalier {

enum class DType : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

// Bits of one element; 4 and 6 for the packed float types.
int dtype_bits(DType dtype);
// The name in a safetensors header, for example "BF16".
const char* dtype_name(DType dtype);
// Exact, case-sensitive match of a safetensors name.
std::optional<DType> dtype_from_name(std::string_view name);

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Rounds to nearest, ties to even; a NaN stays a NaN.
inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t fraction = bits & 0x3ffu;
  // A subnormal is fraction · 2⁻²⁴, exact in float.
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t rebased = exponent == 0x1fu ? 0xffu : exponent + 112;
  return std::bit_cast<float>(sign | (rebased << 23) | (fraction << 13));
}

// Rounds to nearest, ties to even; overflows to infinity; a NaN stays a NaN.
inline uint16_t float_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  // Below 2⁻¹⁴: adding 1/2 leaves the subnormal's fraction, correctly rounded, in the low bits.
  if (magnitude < 0x38800000u) {
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// One element of a BF16, F16 or F32 array as float.
inline float load_float(DType dtype, const void* data, int64_t index) {
  // Tensor data need not be aligned in a checkpoint, so elements are copied out bytewise.
  if (dtype == DType::kF32) {
    float value;
    __builtin_memcpy(&value, static_cast<const char*>(data) + index * 4, 4);
    return value;
  }
  uint16_t bits;
  __builtin_memcpy(&bits, static_cast<const char*>(data) + index * 2, 2);
  return dtype == DType::kBF16 ? bf16_to_float(bits) : f16_to_float(bits);
}

// Elements [first, first + count) of such an array.
inline void load_floats(DType dtype, const void* data, int64_t first, int64_t count, float* out) {
  if (dtype != DType::kBF16) {
    for (int64_t i = 0; i < count; ++i) out[i] = load_float(dtype, data, first + i);
    return;
  }
  // The common type, in a loop that vectorises.
  const char* bytes = static_cast<const char*>(data) + first * 2;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    __builtin_memcpy(&bits, bytes + i * 2, 2);
    out[i] = bf16_to_float(bits);
  }
}

// Stores a float as BF16, F16 or F32.
inline void store_float(DType dtype, void* data, int64_t index, float value) {
  if (dtype == DType::kF32) {
    __builtin_memcpy(static_cast<char*>(data) + index * 4, &value, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kBF16 ? float_to_bf16(value) : float_to_f16(value);
  __builtin_memcpy(static_cast<char*>(data) + index * 2, &bits, 2);
}

inline bool is_compute_dtype(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32;
}

}  // namespace espalier
