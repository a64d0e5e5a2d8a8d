// The recurrence of an integrate-and-fire neuron, one step at a time, and the simulation of a group of neurons.
//
//   m(t) = v(t-1) + x(t);  s(t) = [m(t) >= θ];  v(t) = m(t) - θ s(t)  (soft reset)  or  s(t) ? v_reset : m(t)  (hard)
//
// Exactly these operations in this order, in the state type; compile without floating-point contraction.
// NaN: m is NaN, does not fire, and stays NaN. At +inf a neuron fires for ever (soft reset), at -inf never again.
// No memory layout, no torch here.
//
// V is a number (one neuron) or a SIMD vector of numbers (vector.h: one neuron a lane). A group is W values of type V.
#pragma once

#include <cstdint>
#include <type_traits>

#include "macros.h"

namespace cos_ext {

// The scalar of V, and the type that counts spikes.
template <class V>
struct ValueOf {
  using scalar = V;
  using count = int32_t;
};
template <class V>
using scalar_t = typename ValueOf<V>::scalar;
template <class V>
using count_t = typename ValueOf<V>::count;

// How a count grows by those that fired. As a float, exact up to 2^24: a GPU adds twice as many floats as integers.
// vector.h knows of vectors.
template <class N>
struct CountOf {
  static COS_HD void add(N& sum, bool fired) { sum = fired ? sum + 1 : sum; }
};
template <>
struct CountOf<float> {
  static COS_HD void add(float& sum, bool fired) {
#if defined(__CUDA_ARCH__)  // one instruction; nvcc makes two of the line below
    asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p add.f32 %0, %0, 0f3F800000; }" : "+f"(sum) : "r"(static_cast<int32_t>(fired)));
#else
    sum = fired ? sum + 1 : sum;
#endif
  }
};
template <>
struct CountOf<int32_t> {
  static COS_HD void add(int32_t& sum, bool fired) {
#if defined(__CUDA_ARCH__)  // as above
    asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p add.s32 %0, %0, 1; }" : "+r"(sum) : "r"(static_cast<int32_t>(fired)));
#else
    sum += fired;
#endif
  }
};

// A parameter (θ or v_init) of a group: one value for all, or one each.
template <class V, int W>
struct Uniform {
  V value;
  COS_HD V operator[](int) const { return value; }
};
template <class V, int W>
struct PerLane {
  V values[W];
  COS_HD V operator[](int lane) const { return values[lane]; }
};

struct SoftReset {
  template <class V>
  COS_HD V operator()(V m, V theta) const {
    return m - theta;
  }
};
template <class S>
struct HardReset {
  S v_reset;
  template <class V>
  COS_HD V operator()(V, V) const {
    return V{} + v_reset;
  }
};

// One step: v becomes v(t), the return value is s(t), and m is handed out for whoever watches.
template <class V, class Reset>
COS_HD auto step(V& v, V x, V theta, const Reset& reset, V& m) {
  m = v + x;
  const auto fired = m >= theta;
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<V, float> && std::is_same_v<Reset, SoftReset>) {  // one instruction; nvcc may make two of it
    v = m;
    asm("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p sub.rn.f32 %0, %0, %1; }"
        : "+f"(v)
        : "f"(theta), "r"(static_cast<int32_t>(fired)));
    return fired;
  }
#endif
  v = fired ? reset(m, theta) : m;
  return fired;
}

// T steps of a group. `in.emitted(T, f)` calls f(t, x(t)) in order of time; `out.open(t)` takes the predicates, `out.close`
// stores them. count[i] receives Σ s(t) when Count is set.
template <bool Count, class V, int W, class N, class Theta, class Reset, class In, class Out>
COS_HD void emit(V (&v)[W], N (&count)[W], const Theta& theta, const Reset& reset, int64_t steps, In& in, Out& out) {
  if (Count) {
    COS_LANES
    for (int i = 0; i < W; ++i) count[i] = N{};
  }
  in.emitted(steps, [&](int64_t t, const auto& x) {
    auto s = out.open(t);
    COS_LANES
    for (int i = 0; i < W; ++i) {
      V m;
      const auto fired = step(v[i], x(i), theta[i], reset, m);
      s(i, fired);
      if (Count) CountOf<N>::add(count[i], fired);
    }
    out.close(t, s);
  });
}

}  // namespace cos_ext
