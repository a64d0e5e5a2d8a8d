// How a thread reaches memory: where a neuron's element lies in every operand, transactions of at most 16 bytes, cache hints,
// and the parameters of a pack or of a window. No time, no arithmetic of neurons, no torch headers here.
#pragma once

#include <cstdint>

#include "../core/dtypes.h"
#include "task.h"

// Over rows of inputs and neurons of a pack, which live in registers.
#if defined(__CUDACC__)
#define COS_UNROLL _Pragma("unroll")
#define COS_NO_UNROLL _Pragma("unroll 1")
#else
#define COS_UNROLL
#define COS_NO_UNROLL
#endif

namespace cos_ext::cuda {

// Where the element of one neuron lies in every operand.
template <int Operands>
struct Place {
  const Walk& walk;
  int64_t outer;  // the index in the outermost dimension
  int64_t inner[Operands] = {};  // the offsets, in elements, that the other dimensions add up to

  // Multiplied where it is needed: many operands are never reached.
  __device__ __forceinline__ int64_t operator[](int operand) const { return inner[operand] + outer * walk.stride[operand][0]; }
};
template <int Operands>
__device__ __forceinline__ Place<Operands> place(const Walk& walk, int64_t linear) {
  Place<Operands> at{walk, linear};
  COS_NO_UNROLL
  for (int d = walk.ndim - 1; d > 0; --d) {
    const int64_t outer = walk.dims[d].divide(at.outer);
    const int64_t index = at.outer - outer * walk.dims[d].size;
    COS_UNROLL
    for (int operand = 0; operand < Operands; ++operand) at.inner[operand] += index * walk.stride[operand][d];
    at.outer = outer;
  }
  return at;
}

// What is loaded or stored in one transaction.
template <size_t Bytes>
struct WordOf : BitsOf<Bytes> {};
template <>
struct WordOf<16> {
  using type = uint4;
};
struct Word32 {  // never one transaction: the four float64 of a window
  uint64_t part[4];
};
template <>
struct WordOf<32> {
  using type = Word32;
};
template <class T, int V>
using word_t = typename WordOf<sizeof(T) * V>::type;

// A plain store of 16 bytes as one instruction: beside the streaming one, the compiler would take it apart.
__device__ __forceinline__ void store_plain(uint4* to, const uint4& word) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y),
               "r"(word.z), "r"(word.w)
               : "memory");
#else
  *to = word;
#endif
}
template <class Word>
__device__ __forceinline__ void store_plain(Word* to, const Word& word) {
  *to = word;
}

// Inputs are read once and need no place in the caches, but where rows are read again.
template <bool Again, class Word>
__device__ __forceinline__ Word load_word(const Word* from) {
  return Again ? *from : __ldcs(from);
}
template <class Word>
__device__ __forceinline__ void store_word(Word* to, const Word& word, bool streaming) {
  if (streaming) {
    __stcs(to, word);
  } else {
    store_plain(to, word);
  }
}

// Element i of a word. 16-bit ones by shifts of 32 bits: of memory that is also read in 16 bits, the compiler keeps every word in
// two registers and puts it together at every use.
template <class T, class Word>
__device__ __forceinline__ T element(const Word& word, int i) {
  if constexpr (sizeof(T) == 2 && sizeof(Word) > 2) {
    uint32_t parts[sizeof(Word) / 4];
    memcpy(parts, &word, sizeof word);
    return bit_cast<T>(static_cast<uint16_t>(parts[i / 2] >> (i % 2 * 16)));
  } else {
    T lanes[sizeof(Word) / sizeof(T)];
    memcpy(lanes, &word, sizeof word);
    return lanes[i];
  }
}

// Hides a value from the optimiser, which would otherwise widen 16-bit rows once and keep them, at twice the registers.
template <class T>
__device__ __forceinline__ void opaque([[maybe_unused]] const T*& pointer) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(pointer));
#endif
}
__device__ __forceinline__ void opaque([[maybe_unused]] uint16_t& word) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+h"(word));
#endif
}
__device__ __forceinline__ void opaque([[maybe_unused]] uint64_t& word) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(word));
#endif
}
__device__ __forceinline__ void opaque([[maybe_unused]] uint4& word) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(word.x), "+r"(word.y), "+r"(word.z), "+r"(word.w));
#endif
}

// V values in the state type or counts, as one run of memory in transactions of at most 16 bytes.
template <class S, int V>
constexpr int kRun = sizeof(S) * V > 16 ? 16 / sizeof(S) : V;
template <class S, int V>
__device__ __forceinline__ void load_run(S (&lanes)[V], const S* from) {
  constexpr int n = kRun<S, V>;
  COS_UNROLL
  for (int first = 0; first < V; first += n) {
    const auto word = *reinterpret_cast<const word_t<S, n>*>(from + first);
    memcpy(lanes + first, &word, sizeof word);
  }
}
template <class S, int V>
__device__ __forceinline__ void store_run(const S (&lanes)[V], void* target, int64_t offset) {
  if (!target) return;
  constexpr int n = kRun<S, V>;
  COS_UNROLL
  for (int first = 0; first < V; first += n) {
    word_t<S, n> word;
    memcpy(&word, lanes + first, sizeof word);
    *reinterpret_cast<word_t<S, n>*>(static_cast<S*>(target) + offset + first) = word;
  }
}

// A parameter of the pack that starts at the neuron `start`.
template <class S, int V>
__device__ __forceinline__ void get(S (&lanes)[V], const Source& source, const Task& task, Operand operand, int64_t start,
                                    int64_t offset) {
  const S* data = static_cast<const S*>(source.data);
  if (V > 1 && source.fetch == Fetch::Run) {
    load_run(lanes, data + offset);
    return;
  }
  const S first = source.fetch == Fetch::Value ? static_cast<S>(source.value) : data[offset];
  COS_UNROLL
  for (int i = 0; i < V; ++i) lanes[i] = first;
  if (V > 1 && source.fetch == Fetch::Split) {
    const int64_t left = source.run.size - (start - source.run.divide(start) * source.run.size);
    if (left < V) {
      const int64_t last = start + V - 1;
      const S second =
          data[operand < kOperands ? place<kOperands>(task.walk, last)[operand] : place<kAllOperands>(task.walk, last)[operand]];
      COS_UNROLL
      for (int i = 1; i < V; ++i) lanes[i] = i < left ? first : second;
    }
  }
}

// A parameter of a window.
template <class S>
__device__ __forceinline__ void get_window(S (&lanes)[4], const Source& source, int64_t offset) {
  const S* data = static_cast<const S*>(source.data);
  COS_UNROLL
  for (int i = 0; i < 4; ++i) {
    lanes[i] = data ? data[offset + (i & 1) * source.across + (i >> 1) * source.down] : static_cast<S>(source.value);
  }
}

}  // namespace cos_ext::cuda
