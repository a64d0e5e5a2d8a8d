// The QCFS activation (Bu et al., ICLR 2022, equation 7) and its straight-through gradient, an element at a time. No memory
// layout, no torch.
//
//   u = z L/θ + ε     k = clip(floor(u + 1/2), 0, L)     a = k/L θ
//   da/dz = inside    da/dθ = (k - inside z L/θ)/L       inside: 0 <= z <= θ, with noise 0 <= u <= L
//
// ε is noise, or 0. Exactly these operations in this order, in the state type; compile without floating-point contraction.
// NaN: a is NaN, and nothing is inside.
#pragma once

#include "macros.h"

namespace cos_ext {

// floor(u) for 0 <= u <= 2^23; NaN stays.
template <class S>
COS_HD S floor_of(S u) {
  // Every larger number is whole, so that the sum rounds u to the nearest whole one.
  constexpr S kWhole = sizeof(S) == 8 ? S(4503599627370496.0) : S(8388608);
  const S nearest = (u + kWhole) - kWhole;
  return nearest > u ? nearest - 1 : nearest;
}

template <class S>
struct Quantiser {
  S theta, levels;

  COS_HD S scaled(S z) const { return z * levels / theta; }
  // k of u.
  COS_HD S level(S u) const {
    u = u + S(0.5);
    u = u < 0 ? S(0) : u;
    u = u > levels ? levels : u;
    return floor_of(u);
  }
  COS_HD S value(S u) const { return level(u) / levels * theta; }

  // da/dz · grad, and da/dθ · grad · L in `of_theta`. Noisy: u is scaled(z) and noise, else scaled(z).
  template <bool Noisy>
  COS_HD S gradient(S z, S noise, S grad, S& of_theta) const {
    const S share = scaled(z), u = Noisy ? share + noise : share;
    const bool inside = Noisy ? (u >= 0) & (u <= levels) : (z >= 0) & (z <= theta);
    of_theta = grad * (level(u) - (inside ? share : S(0)));
    return inside ? grad : S(0);
  }
};

}  // namespace cos_ext
