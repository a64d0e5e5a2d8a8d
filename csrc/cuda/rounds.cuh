// Calibration of a pack: the first round of all its neurons at once; every further one of those neurons alone that still need it,
// one after the other, for they are few. The arithmetic is csrc/core's; no torch headers here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/calibration.h"
#include "../core/dtypes.h"
#include "memory.cuh"
#include "rows.cuh"

namespace cos_ext::cuda {

// lanes[i]. Registers have no index: one of two at a time.
template <class S, int V>
__device__ __forceinline__ S pick(const S (&lanes)[V], uint32_t i) {
  S left[V];
  COS_UNROLL
  for (int j = 0; j < V; ++j) left[j] = lanes[j];
  COS_UNROLL
  for (int n = V / 2; n > 0; n /= 2) {
    COS_UNROLL
    for (int j = 0; j < n; ++j) left[j] = i & n ? left[j + n] : left[j];
  }
  return left[0];
}
// Element i of a word.
template <class T, class Word>
__device__ __forceinline__ T pick_element(const Word& word, uint32_t i) {
  if constexpr (sizeof(Word) == sizeof(T)) {
    return bit_cast<T>(word);
  } else {
    constexpr int kPairs = sizeof(Word) / 8, kEach = 8 / sizeof(T);
    uint32_t parts[2 * kPairs], low[kPairs], high[kPairs];  // halves of 64 bits, as opaque() knows them
    memcpy(parts, &word, sizeof word);
    COS_UNROLL
    for (int j = 0; j < kPairs; ++j) {
      low[j] = parts[2 * j];
      high[j] = parts[2 * j + 1];
    }
    const uint64_t pair = uint64_t{pick(high, i / kEach)} << 32 | pick(low, i / kEach);
    return bit_cast<T>(static_cast<typename BitsOf<sizeof(T)>::type>(pair >> (i % kEach * 8 * sizeof(T))));
  }
}

// For rho <= 2^20.
template <class S>
using FloorFor = std::conditional_t<std::is_same_v<S, float>, ByReciprocal, ByDivision>;

__device__ __forceinline__ uint32_t highest_bit(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return 31u - static_cast<uint32_t>(__clz(static_cast<int>(bits)));
#else
  return 31u - static_cast<uint32_t>(__builtin_clz(bits));
#endif
}

// x(t) of one neuron of a pack.
template <class S, int Rows>
struct OneNeuron {
  S x[Rows];
  struct Row {
    S value;
    __device__ __forceinline__ S operator()(int) const { return value; }
  };
  template <class F>
  __device__ __forceinline__ void watched(int32_t rho, const F& f) const {
    const bool full = rho == Rows;  // no look after every row
    f(Row{x[0]}, std::true_type{});
    COS_UNROLL
    for (int j = 1; full && j < Rows; ++j) f(Row{x[j]});
    COS_UNROLL
    for (int j = 1; !full && j < Rows - 1; ++j) {
      if (j < rho) f(Row{x[j]});
    }
  }
};

// calibrate() for inputs that are held, and more than one neuron.
template <class S, int V, class N, class T, int Rows, Extra E, class Theta, class Noted>
__device__ __forceinline__ void calibrate_held(S (&v)[V], N (&psi)[V], N (&count)[V], const Theta& theta, int32_t rho,
                                               int32_t iterations, Inputs<T, V, Rows, Mode::Held, E>& in, const Noted& noted) {
  Watch<S, V, N> all;
  const auto look = [&](auto& w, const S(&from)[V], int32_t) { watch(w, from, theta, rho, in); };
  measure<FloorFor<S>>(all, v, psi, count, theta, rho, look, noted);
  if (iterations != 0) shift(v, all, psi, theta, N{0});
  uint32_t left = 0;
  if (iterations != 0 && iterations != 1) {
    COS_UNROLL
    for (int i = 0; i < V; ++i) left |= absolute(psi[i]) > 1 ? 1u << i : 0u;
  }
  const auto most = static_cast<N>(iterations < 0 ? rho : iterations);
  while (left) {
    const uint32_t i = highest_bit(left);
    left ^= 1u << i;
    OneNeuron<S, Rows> one;
    in.hide();
    COS_UNROLL
    for (int j = 0; j < Rows; ++j) one.x[j] = to_state(pick_element<T>(in.rows[j], i));
    S thetas[V], start[1] = {pick(v, i)};
    COS_UNROLL
    for (int j = 0; j < V; ++j) thetas[j] = theta[j];
    const Uniform<S, 1> its{std::is_same_v<Theta, Uniform<S, V>> ? theta[0] : pick(thetas, i)};
    const N missing = pick(psi, i), size = absolute(missing), rounds = most < size ? most : size;
    COS_NO_UNROLL
    for (N k = 1; k < rounds; k += 1) {
      Watch<S, 1, N> w;
      watch(w, start, its, rho, one);
      start[0] = shifted(start[0], its.value, missing, k, w.min_fired[0], w.max_silent[0]);
    }
    COS_UNROLL
    for (uint32_t j = 0; j < V; ++j) v[j] = j == i ? start[0] : v[j];
  }
}

}  // namespace cos_ext::cuda
