// SIMD vectors as values of the core (GCC and clang vector extensions): the same templates, one neuron a lane. Host only.
#pragma once

#include <cstdint>
#include <cstring>

#include "emission.h"
#include "neuron.h"

namespace cos_ext {

template <class S, int N>
struct VectorOf {
  typedef S type __attribute__((vector_size(sizeof(S) * N)));
};
template <class S, int N>
using vector_t = typename VectorOf<S, N>::type;

// A comparison of float vectors is a vector of int32, of double vectors one of int64, with -1 for true.
#define COS_VECTOR_VALUE(S, Int, N) \
  template <>                       \
  struct ValueOf<vector_t<S, N>> {  \
    using scalar = S;               \
    using count = vector_t<Int, N>; \
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
