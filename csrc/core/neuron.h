// The recurrence of an integrate-and-fire neuron, one step at a time, and a simulation of a group of W neurons.
//
//   m(t) = v(t-1) + x(t);  s(t) = [m(t) >= θ];  v(t) = m(t) - θ s(t)  (soft reset)  or  s(t) ? v_reset : m(t)  (hard)
//
// Exactly these operations in this order, in the state type; compile without floating-point contraction.
// NaN: m is NaN, does not fire, and stays NaN. +inf fires for ever, -inf never again. No memory layout, no torch here.
#pragma once

#include <cstdint>

#include "macros.h"

namespace cos_ext {

// A parameter (θ or v_init) of a group: one value for all lanes, or one each.
template <class S, int W>
struct Uniform {
  S value;
  COS_HD S operator[](int) const { return value; }
};
template <class S, int W>
struct PerLane {
  S values[W];
  COS_HD S operator[](int lane) const { return values[lane]; }
};

template <class S>
struct SoftReset {
  COS_HD S operator()(S m, S theta) const { return m - theta; }
};
template <class S>
struct HardReset {
  S v_reset;
  COS_HD S operator()(S, S) const { return v_reset; }
};

// One step of one neuron: v becomes v(t), the return value is s(t), and m is handed out for whoever watches.
template <class S, class Reset>
COS_HD bool step(S& v, S x, S theta, const Reset& reset, S& m) {
  m = v + x;
  const bool fired = m >= theta;
  v = fired ? reset(m, theta) : m;
  return fired;
}

// T steps of W neurons. `in.load(t)` gives x(t) by lane; `out.open(t)` takes a predicate by lane, `out.close` stores it.
// count[i] receives Σ s(t) when Count is set. The first Held steps are unrolled, so that a GPU finds inputs that a
// calibration has read already in registers, by `in.held(t)`.
template <bool Count, int Held, class S, int W, class Theta, class Reset, class In, class Out>
COS_HD void emit(S (&v)[W], int32_t (&count)[W], const Theta& theta, const Reset& reset, int64_t steps, In& in, Out& out) {
  if (Count) {
    COS_LANES
    for (int i = 0; i < W; ++i) count[i] = 0;
  }
  const auto advance = [&](int64_t t, const auto& x) {
    auto s = out.open(t);
    COS_LANES
    for (int i = 0; i < W; ++i) {
      S m;
      const bool fired = step(v[i], x(i), theta[i], reset, m);
      s(i, fired);
      if (Count) count[i] += fired;
    }
    out.close(t, s);
  };
  COS_TIME
  for (int t = 0; t < Held; ++t) {
    if (t < steps) advance(t, in.held(t));
  }
  for (int64_t t = Held; t < steps; ++t) advance(t, in.load(t));
}

}  // namespace cos_ext
