// How the blocks of the decode kernel tell each other what they found: in words, floats or bf16 parts of one, whose
// last bit is a mark. Who needs a word reads it until it has the mark of the layer at hand: the word itself says that
// it has come, so that nothing else has to be written, waited for or read.
//
// There are two copies of all words, for layers in turns, and a copy's mark changes from one use of it to the next,
// over launches, too. Every word is written once in every layer. A word is not written again before all have read it:
// nobody goes on to the experts of a layer before all blocks have read what came before its router (see
// Decoder::route).
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/decode/decode.h"
#include "kernels/cuda/ptx/memory.cuh"

namespace espalier::cuda {

// A layer, counted since the words were zeros.
struct Turn {
  uint32_t copy;
  uint32_t mark;

  __device__ explicit Turn(uint32_t layer) : copy(layer % 2), mark(layer / 2 % 2 ^ 1) {}
};

// Those of the turn, of words that the task has.
__device__ __forceinline__ uint32_t* words_of(const DecodeTask& task, uint32_t* first, const Turn& turn) {
  return first + turn.copy * task.copy_size;
}

// At most 2⁻²³ of the value off; infinity and NaN stay what they are.
__device__ __forceinline__ void store_word(uint32_t* to, float value, uint32_t mark) {
  ptx::store_relaxed_device(to, (__float_as_uint(value) & ~1u) | mark);
}

__device__ __forceinline__ float value_of(uint32_t word) { return __uint_as_float(word & ~1u); }
__device__ __forceinline__ float4 value_of(const uint4& words) {
  return {value_of(words.x), value_of(words.y), value_of(words.z), value_of(words.w)};
}

// What a product takes next: one or two bf16 parts, the second (2⁻¹⁶ of the value off) without its last bit, which is
// the mark.
__device__ __forceinline__ void store_word_of_parts(uint32_t* to, float value, int parts, uint32_t mark) {
  const uint32_t high = __float_as_uint(__bfloat162float(__float2bfloat16_rn(value)));
  const float rest = value - __uint_as_float(high);
  // Infinity stays infinity.
  const uint32_t low = parts == 2 && rest == rest ? (__float_as_uint(rest) + 0x10000) >> 16 & 0xfffe : 0;
  ptx::store_relaxed_device(to, high | low | mark);
}

// The part of two neighbours.
template <int kPart>
__device__ __forceinline__ uint32_t part_of(uint32_t first, uint32_t second) {
  return kPart == 0 ? __byte_perm(first, second, 0x7632) : __byte_perm(first, second, 0x5410) & 0xfffefffe;
}

__device__ __forceinline__ bool has_mark(uint32_t word, uint32_t mark) { return (word & 1) == mark; }
__device__ __forceinline__ bool has_mark(const uint2& words, uint32_t mark) {
  return has_mark(words.x, mark) && has_mark(words.y, mark);
}
__device__ __forceinline__ bool has_mark(const uint4& words, uint32_t mark) {
  return mark != 0 ? (words.x & words.y & words.z & words.w & 1) != 0
                   : ((words.x | words.y | words.z | words.w) & 1) == 0;
}

__device__ __forceinline__ void load_words(uint32_t& to, const uint32_t* from) { to = ptx::load_relaxed_device(from); }
__device__ __forceinline__ void load_words(uint2& to, const uint32_t* from) { to = ptx::load_relaxed_device_8(from); }
__device__ __forceinline__ void load_words(uint4& to, const uint32_t* from) { to = ptx::load_relaxed_device_16(from); }

__device__ __forceinline__ void fill_words(uint32_t& to, uint32_t word) { to = word; }
__device__ __forceinline__ void fill_words(uint2& to, uint32_t word) { to = {word, word}; }
__device__ __forceinline__ void fill_words(uint4& to, uint32_t word) { to = {word, word, word, word}; }

// Asks for the words (or twos or fours of them, aligned so) that lie at `from`; those of null are zeros. Whole warps
// ask.
template <class Words, int kCount>
__device__ __forceinline__ void ask_words(uint32_t mark, const uint32_t* const (&from)[kCount],
                                          Words (&words)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    fill_words(words[j], mark);
    if (from[j] != nullptr) load_words(words[j], from[j]);
  }
}

// Waits for words that were asked for, by asking again for those that had not come. The lanes of a warp leave together:
// lanes that left one by one would go on as several warps do, one after the other, until something joined them again.
template <class Words, int kCount>
__device__ __forceinline__ void await_asked(uint32_t mark, const uint32_t* const (&from)[kCount],
                                            Words (&words)[kCount]) {
  bool missing;
  do {
    missing = false;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (has_mark(words[j], mark)) continue;
      missing = true;
      load_words(words[j], from[j]);
    }
  } while (__any_sync(~0u, missing));
}

// Both, of words at place(0 … kCount − 1).
template <class Words, int kCount, class Place>
__device__ __forceinline__ void await_words(uint32_t mark, Words (&words)[kCount], const Place& place) {
  const uint32_t* from[kCount];
#pragma unroll
  for (int j = 0; j < kCount; ++j) from[j] = place(j);
  ask_words(mark, from, words);
  await_asked(mark, from, words);
}

}  // namespace espalier::cuda
