// Surrogate gradients: φ(u), which stands for the derivative of the step function at u = (m - θ)/θ, and one step of
// backpropagation through time of a neuron. V is a number or a SIMD vector (vector.h). No memory layout, no torch.
//
// With z(t) = θ s(t) sent, g = dL/dz(t), and d = dL/dv(t) from the steps after t, where h = 0 if the reset is detached, else 1:
//
//   soft reset:  e = (g - h d) φ            dL/dm = d + e             dL/dθ += s (g - d) - e m/θ
//   hard reset:  e = (θ g + h d (v_reset - m)) φ/θ    dL/dm = (1 - s) d + e     dL/dθ += s g - e m/θ
//
// dL/dx(t) = dL/dv(t-1) = dL/dm. The formulas of φ are those of SpikingJelly, FastSigmoid that of snntorch.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "macros.h"
#include "neuron.h"

namespace cos_ext {

template <class V>
COS_HD V magnitude(V u) {
  return u < 0 ? -u : u;
}

// Integers as wide as V's scalars, a lane each.
template <class V>
struct IntegersOf {
  using type = count_t<V>;
};
template <>
struct IntegersOf<float> {
  using type = uint32_t;
};
template <>
struct IntegersOf<double> {
  using type = uint64_t;
};

// exp(y) for y <= 0, to the precision of the scalar: the same operations everywhere, which no library promises.
template <class V>
COS_HD V exp_below(V y) {
  using S = scalar_t<V>;
  using I = typename IntegersOf<V>::type;
  constexpr bool kWide = sizeof(S) == 8;
  constexpr int kMantissa = kWide ? 52 : 23;
  constexpr S kLowest = kWide ? S(-708) : S(-87), kShift = kWide ? S(6755399441055744.0) : S(12582912);  // 1.5 · 2^52, 2^23
  constexpr S kHigh = kWide ? S(6.93147180369123816490e-01) : S(0.693359375);
  constexpr S kLow = kWide ? S(1.90821492927058770002e-10) : S(-2.12194440e-4);
  const V asked = y;
  y = y < kLowest ? V{} + kLowest : y;
  const V shifted = y * S(1.4426950408889634) + kShift;  // its last bits are the nearest integer k
  const V k = shifted - kShift;
  const V r = y - k * kHigh - k * kLow;
  V p = V{} + S(1);
  COS_UNROLL_CONSTANT
  for (int i = kWide ? 14 : 7; i > 0; --i) p = p * r * (S(1) / S(i)) + S(1);
  const V e = bit_cast<V>(bit_cast<I>(p) + (bit_cast<I>(shifted) << kMantissa));
  return asked == asked ? e : asked;  // NaN stays
}

template <class S>
struct ATan {
  S half, slope;
  explicit ATan(double alpha) : half(static_cast<S>(alpha / 2)), slope(static_cast<S>(3.14159265358979323846 * alpha / 2)) {}
  template <class V>
  COS_HD V operator()(V u) const {
    const V z = u * slope;
    return half / (z * z + S(1));
  }
};
template <class S>
struct Sigmoid {
  S alpha;
  explicit Sigmoid(double alpha) : alpha(static_cast<S>(alpha)) {}
  template <class V>
  COS_HD V operator()(V u) const {
    const V e = exp_below(-magnitude(u * alpha)), sum = e + S(1);
    return e * alpha / (sum * sum);
  }
};
template <class S>
struct Triangle {
  S alpha;
  explicit Triangle(double alpha) : alpha(static_cast<S>(alpha)) {}
  template <class V>
  COS_HD V operator()(V u) const {
    const V height = alpha - magnitude(u) * (alpha * alpha);
    return height < 0 ? V{} : height;
  }
};
template <class S>
struct Rectangle {
  S alpha, half;
  explicit Rectangle(double alpha) : alpha(static_cast<S>(alpha)), half(static_cast<S>(0.5 / alpha)) {}
  template <class V>
  COS_HD V operator()(V u) const {
    return magnitude(u) < half ? V{} + alpha : V{};
  }
};
template <class S>
struct FastSigmoid {
  S alpha;
  explicit FastSigmoid(double alpha) : alpha(static_cast<S>(alpha)) {}
  template <class V>
  COS_HD V operator()(V u) const {
    const V sum = magnitude(u) * alpha + S(1);
    return S(1) / (sum * sum);
  }
};

// d becomes dL/dv(t-1), which is dL/dx(t). `inverse` is 1/θ. `detached` is a bool, or std::bool_constant where it is known.
template <bool Hard, class V, class Phi, class Bool>
COS_HD void step_back(V m, V theta, V inverse, scalar_t<V> v_reset, const Phi& phi, Bool detached, V g, V& d, V& dtheta) {
  const auto fired = m >= theta;
  const V q = m * inverse, slope = phi(q - scalar_t<V>(1));
  V e, kept, sent;
  if (Hard) {
    e = (detached ? theta * g : theta * g + d * (v_reset - m)) * slope * inverse;
    kept = fired ? V{} : d;
    sent = g;
  } else {
    e = (detached ? g : g - d) * slope;
    kept = d;
    sent = g - d;
  }
  dtheta += (fired ? sent : V{}) - e * q;
  d = kept + e;
}

}  // namespace cos_ext
