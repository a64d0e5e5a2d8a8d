// SIMD vectors as values of the core (GCC and clang vector extensions): the same templates, one neuron a lane. Host only.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emission.h"
#include "general.h"
#include "neuron.h"

namespace cos_ext {

template <class S, int N>
struct VectorOf {
  typedef S type __attribute__((vector_size(sizeof(S) * N)));
};
template <class S, int N>
using vector_t = typename VectorOf<S, N>::type;

// dtypes.h's rounding to a storage type and back, of vectors of float.
template <class T, class V, class U>
COS_HD void round_bits(V& x, const U&) {
  U bits;
  memcpy(&bits, &x, sizeof x);
  const U sign = bits & 0x80000000u, size = bits ^ sign;
  U rounded;
  if constexpr (std::is_same_v<T, BFloat16>) {
    rounded = (size + 0x7fffu + ((size >> 16) & 1u)) & 0xffff0000u;
  } else {
    V small;
    memcpy(&small, &size, sizeof small);
    small = (small + 0.5f) - 0.5f;  // multiples of 2^-24 are left
    U subnormal;
    memcpy(&subnormal, &small, sizeof small);
    const U normal = (size + 0x0fffu + ((size >> 13) & 1u)) & 0xffffe000u;
    rounded = size < 0x38800000u ? subnormal : normal;
    rounded = size >= 0x477ff000u ? U{} + 0x7f800000u : rounded;
  }
  rounded = (size > 0x7f800000u ? U{} + 0x7fc00000u : rounded) | sign;
  memcpy(&x, &rounded, sizeof x);
}

// A comparison of float vectors is a vector of int32, of double vectors one of int64, with -1 for true.
#define COS_VECTOR_VALUE(S, Int, N)                                                   \
  template <>                                                                         \
  struct ValueOf<vector_t<S, N>> {                                                    \
    using scalar = S;                                                                 \
    using count = vector_t<Int, N>;                                                   \
  };                                                                                  \
  template <>                                                                         \
  struct Truncated<vector_t<S, N>> {                                                  \
    static COS_HD void round(vector_t<S, N>& x) {                                     \
      using Whole = vector_t<int32_t, N>;                                             \
      x = __builtin_convertvector(__builtin_convertvector(x, Whole), vector_t<S, N>); \
    }                                                                                 \
  };                                                                                  \
  template <class T>                                                                  \
  struct Stored<T, vector_t<S, N>> {                                                  \
    static COS_HD void round(vector_t<S, N>& x) {                                     \
      if constexpr (sizeof(T) < sizeof(S)) round_bits<T>(x, vector_t<uint32_t, N>{}); \
    }                                                                                 \
  };
#define COS_VECTOR_COUNT(Int, N)                                                                \
  template <>                                                                                   \
  struct CountOf<vector_t<Int, N>> {                                                            \
    static COS_HD void add(vector_t<Int, N>& count, vector_t<Int, N> fired) { count -= fired; } \
  };
COS_VECTOR_COUNT(int32_t, 4)
COS_VECTOR_COUNT(int32_t, 8)
COS_VECTOR_COUNT(int32_t, 16)
COS_VECTOR_COUNT(int64_t, 2)
COS_VECTOR_COUNT(int64_t, 4)
COS_VECTOR_COUNT(int64_t, 8)
#undef COS_VECTOR_COUNT
COS_VECTOR_VALUE(float, int32_t, 4)
COS_VECTOR_VALUE(float, int32_t, 8)
COS_VECTOR_VALUE(float, int32_t, 16)
COS_VECTOR_VALUE(double, int64_t, 2)
COS_VECTOR_VALUE(double, int64_t, 4)
COS_VECTOR_VALUE(double, int64_t, 8)
#undef COS_VECTOR_VALUE

template <class V, class S>
COS_HD V load_vector(const S* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}
template <class V, class S>
COS_HD void store_vector(S* to, const V& v) {
  memcpy(to, &v, sizeof v);
}

}  // namespace cos_ext
