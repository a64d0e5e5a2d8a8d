// The general neuron: several levels a step, negative ones too, bounds of the count, an emitted value of its own, leak,
// prediction, and a ladder of thresholds. Published conversion methods are settings of it. One step of one neuron at a time; no
// memory layout.
//
//   m = leak v + x(t) + b(t);  d = m - ŷ (prediction) or m;  q = clip(Q(d), max(s_min, n_min - n), min(s_max, n_max - n))
//   sent: q · emitted + ŷ;  v = d - θ q (soft reset)  or  q != 0 ? v_reset : m (hard);  n += q;  ŷ += q θ / t
//
//   Q by levels:  k where m >= up + (k-1) θ, the largest k >= 1;  -k where m < -down - (k-1) θ (or <=);  else 0
//   Q by ladder:  ±θ 2^-i, the largest rung with |d| >= ratio θ 2^-i; gated: a negative one only up to what has been sent
//
// Thresholds are compared as they round: fl(up + fl((k-1) θ)). Without contraction. With levels 0..1 and nothing else set, every
// bit is neuron.h's, which is kept because it is faster; in 16 bits where θ is one of the storage type, as a reset takes off what
// was sent. NaN: q = 0, v stays NaN. At +inf it fires s_max for ever (soft reset).
#pragma once

#include <cstdint>

#include "calibration.h"
#include "dtypes.h"
#include "macros.h"
#include "neuron.h"

namespace cos_ext {

// Few: levels 0..s_max <= kFewLevels, without bounds of the count.
enum class Staircase : int32_t { Few, Levels, Ladder };
constexpr int kFewLevels = 4, kMostRungs = 8;
constexpr int64_t kMostLevels = int64_t{1} << 20;  // and of upper and lower: a quotient's floor is then wrong by one at most

// What all neurons of a layer share, in the state type S. upper and lower in θ; lower is +inf where there are no negative levels.
template <class S>
struct Rule {
  S s_min, s_max, n_min, n_max;
  S upper, lower, leak, v_reset, ratio;
  bool strict, hard, gated;
  int32_t rungs;
};

// Neurons between two steps. V is a number (one neuron) or a SIMD vector of numbers (vector.h: one neuron a lane).
template <class V>
struct Membrane {
  V v;
  V n;  // the running count; by ladder, the sum of what was taken off
  V mean;  // ŷ
  V sum;  // of what has been sent, with prediction
};

template <class V>
COS_HD V smaller(V a, V b) {
  return a < b ? a : b;
}
template <class V>
COS_HD V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
COS_HD V all_lanes(scalar_t<V> value) {
  return V{} + value;
}

// Towards zero, of what an int32_t holds; vector.h has that of vectors.
template <class V>
struct Truncated {
  static COS_HD void round(V& x) { x = static_cast<V>(static_cast<int32_t>(x)); }
};
// As the storage type T rounds it.
template <class T, class V>
struct Stored {
  static COS_HD void round(V& x) { x = to_state(FromState<T>::call(x)); }
};

// The largest k >= 1 with m >= first + (k-1) θ, at most `most`; 0 where there is none. Beyond: > instead of >=.
template <class V>
COS_HD V levels_reached(V m, V first, V theta, V most, bool beyond) {
  const V zero = V{}, one = all_lanes<V>(1);
  const auto reached = [&](V k) {
    const V bound = first + (k - one) * theta;
    return beyond ? m > bound : m >= bound;
  };
  V q = smaller((m - first) / theta, most);
  q = larger(q, zero);
  Truncated<V>::round(q);
  q = q + one;
  q = reached(q) ? q : q - one;
  q = reached(q + one) ? q + one : q;
  q = smaller(q, most);
  return reached(one) ? q : zero;
}

// How many levels neurons at d send in a step.
template <Staircase Q, class V>
COS_HD V quantised(const Rule<scalar_t<V>>& rule, V d, V theta, V n) {
  const V zero = V{}, one = all_lanes<V>(1), up = all_lanes<V>(rule.upper) * theta;
  if constexpr (Q == Staircase::Few) {
    V q = d >= up ? one : zero;
    q = q + (d >= up + theta ? one : zero);
    q = q + (d >= up + all_lanes<V>(2) * theta ? one : zero);
    q = q + (d >= up + all_lanes<V>(3) * theta ? one : zero);
    return smaller(q, all_lanes<V>(rule.s_max));
  } else {
    V q = levels_reached(d, up, theta, all_lanes<V>(rule.s_max), false);
    if (rule.s_min < 0) {
      const V down = levels_reached(-d, all_lanes<V>(rule.lower) * theta, theta, all_lanes<V>(-rule.s_min), rule.strict);
      q = q > zero ? q : zero - down;
    }
    q = larger(q, larger(all_lanes<V>(rule.s_min), all_lanes<V>(rule.n_min) - n));
    return smaller(q, smaller(all_lanes<V>(rule.s_max), all_lanes<V>(rule.n_max) - n));
  }
}

// The rung that neurons at d take off, with its sign. `sent`: the sum of what they have sent.
template <class V>
COS_HD V rung(const Rule<scalar_t<V>>& rule, V d, V theta, V sent) {
  using S = scalar_t<V>;
  const V zero = V{}, size = d < zero ? -d : d;
  V found = zero;
  for (int i = rule.rungs - 1; i >= 0; --i) {  // the largest last
    const V step = theta * all_lanes<V>(S(1) / static_cast<S>(int32_t{1} << i));
    auto takes = size >= all_lanes<V>(rule.ratio) * step;
    if (rule.gated) takes = takes & ((d >= zero) | (sent >= step));
    found = takes ? step : found;
  }
  return d < zero ? -found : found;
}

// One step of neurons. `x` is x(t), `bias` b(t), `t` from 1; `emitted` is one level's value where it is `own`, else θ. The return
// value is what is sent, not rounded to the storage type T yet; spikes grows by the levels, up or down; q and m are handed out
// for whoever watches.
template <Staircase Q, bool Predict, class T, class V>
COS_HD V general_step(const Rule<scalar_t<V>>& rule, Membrane<V>& at, V x, V bias, V theta, V emitted, bool own, int32_t t,
                      V& spikes, V& q, V& m) {
  const V zero = V{};
  m = all_lanes<V>(rule.leak) * at.v + x + bias;
  const V d = Predict ? m - at.mean : m;
  const V before = Predict ? at.sum + at.mean : at.n;
  V sent, taken;
  if constexpr (Q == Staircase::Ladder) {
    q = rung(rule, d, theta, before);
    sent = taken = q;
    spikes = spikes + (q != zero ? all_lanes<V>(1) : zero);
  } else {
    q = quantised<Q>(rule, d, theta, at.n);
    taken = q * theta;
    sent = own ? q * emitted : taken;
    spikes = spikes + (q < zero ? -q : q);
  }
  // A reset takes off what was sent, as it was rounded.
  if (!Predict && !own) Stored<T, V>::round(taken);
  const V left = d - taken;
  at.v = rule.hard ? (q != zero ? all_lanes<V>(rule.v_reset) : left) : left;
  at.n = at.n + q;
  if (!Predict) return sent;
  const V value = at.mean + sent;
  at.sum = before + sent;
  at.mean = at.mean + sent / all_lanes<V>(static_cast<scalar_t<V>>(t));
  return value;
}

// What calibration needs of a step, as calibration.h keeps it of one that fired and of one that did not: m less the levels below,
// where a level can be spared; and m less the levels sent, where one more can be.
template <class V>
COS_HD void general_extremes(const Rule<scalar_t<V>>& rule, V m, V q, V theta, V& min_fired, V& max_silent) {
  const V zero = V{}, down = all_lanes<V>(rule.lower) * theta;
  const V above = m - (q - all_lanes<V>(1)) * theta, within = m - q * theta;
  min_fired = least(min_fired, q > all_lanes<V>(rule.s_min), q > zero ? above : above + down);
  max_silent = greatest(max_silent, q < all_lanes<V>(rule.s_max), q < zero ? within + down : within);
}

// How many levels a neuron can send in so many steps.
template <class S>
struct Counts {
  S fewest, most;
  COS_HD Counts(const Rule<S>& rule, int32_t steps)
      : fewest(larger(rule.n_min, rule.s_min * static_cast<S>(steps))),
        most(smaller(rule.n_max, rule.s_max * static_cast<S>(steps))) {}
  // ψ of a neuron that has sent `count` levels, its residual r.
  COS_HD S offset(S r, S theta, S count) const { return clipped(ByDivision::floor(r, theta), fewest - count, most - count); }
};

// C* levels over rho steps in an order of our own, as emission.h has it for one level. Even: an even share at every step, and of
// the rest of the division what emission.h sends. Front: as many as a step takes, until none is left.
struct Share {
  int32_t each, rest;
  COS_HD Share(int32_t desired, int32_t rho) : each(desired / rho - (desired % rho < 0)), rest(desired - each * rho) {}
};
// phase: rho before the first step.
COS_HD int32_t send_even(const Share& share, int32_t& phase, int32_t rho) {
  const int32_t next = phase + 2 * share.rest;
  const bool one = next >= 2 * rho;
  phase = one ? next - 2 * rho : next;
  return share.each + one;
}
// left: C* before the first of every rho steps.
COS_HD int32_t send_front(int32_t& left, int32_t s_min, int32_t s_max) {
  const int32_t sent = left < s_min ? s_min : left > s_max ? s_max : left;
  left -= sent;
  return sent;
}

}  // namespace cos_ext
