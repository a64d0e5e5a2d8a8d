// Storage types (what tensors hold) and their exact conversion to the state type (what neurons compute in).
// Bit manipulation only, so that it vectorises for every instruction set; no arithmetic of neurons here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "macros.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace cos_ext {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class Storage>
struct StateOf {
  using type = float;
};
template <>
struct StateOf<double> {
  using type = double;
};
template <class Storage>
using state_t = typename StateOf<Storage>::type;

template <class To, class From>
COS_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "sizes must agree");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

COS_HD float to_state(float x) { return x; }
COS_HD double to_state(double x) { return x; }
COS_HD float to_state(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
COS_HD float to_state(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(bit_cast<__half>(x.bits));
#else
  const uint32_t magnitude = uint32_t{x.bits} & 0x7fffu;
  // Normal numbers: the exponent's bias goes from 15 to 127. Infinity and NaN keep an exponent of all ones.
  const uint32_t bias = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  const uint32_t normal = (magnitude << 13) + bias;
  // Subnormal numbers: magnitude · 2^-24, exact, and independent of the flush-to-zero mode.
  const uint32_t subnormal = bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t sign = (uint32_t{x.bits} & 0x8000u) << 16;
  return bit_cast<float>((magnitude < 0x0400u ? subnormal : normal) | sign);
#endif
}

// State to storage, rounding to nearest even.
template <class Storage>
struct FromState;
template <>
struct FromState<float> {
  static COS_HD float call(float x) { return x; }
};
template <>
struct FromState<double> {
  static COS_HD double call(double x) { return x; }
};
template <>
struct FromState<BFloat16> {
  static COS_HD BFloat16 call(float x) {
#if defined(__CUDA_ARCH__)
    return bit_cast<BFloat16>(__float2bfloat16_rn(x));
#else
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return BFloat16{static_cast<uint16_t>(x != x ? 0x7fc0u : rounded)};
#endif
  }
};
template <>
struct FromState<Half> {
  static COS_HD Half call(float x) {
#if defined(__CUDA_ARCH__)
    return bit_cast<Half>(__float2half_rn(x));
#else
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Adding 1/2 leaves exactly the multiples of 2^-24 in the last bit, rounded to nearest even: subnormal below 2^-14.
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // rounds to 65536 or more
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return Half{static_cast<uint16_t>(half | sign)};
#endif
  }
};

// Whether θ is positive and finite in the storage type, in which spikes are written.
template <class Storage>
COS_HD bool storable_threshold(double theta) {
  const auto stored = to_state(FromState<Storage>::call(static_cast<state_t<Storage>>(theta)));
  return stored > 0 && stored <= std::numeric_limits<decltype(stored)>::max();
}

// fired ? value : 0 as a mask of bits: a select would be compiled to a branch where `value` comes from memory.
template <size_t Size>
struct BitsOf;
template <>
struct BitsOf<2> {
  using type = uint16_t;
};
template <>
struct BitsOf<4> {
  using type = uint32_t;
};
template <>
struct BitsOf<8> {
  using type = uint64_t;
};
template <class Storage>
COS_HD Storage value_or_zero(bool fired, Storage value) {
  using Bits = typename BitsOf<sizeof(Storage)>::type;
  return bit_cast<Storage>(static_cast<Bits>(bit_cast<Bits>(value) & static_cast<Bits>(Bits{0} - Bits{fired})));
}

}  // namespace cos_ext
