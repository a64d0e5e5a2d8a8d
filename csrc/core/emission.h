// Emission of a known number of spikes, C* over every rho steps, in an order of our own. Exact by construction: the next
// layer's count over rho steps depends on the number of spikes alone. Integers only; no memory layout, no torch.
//
//   even:   n(t) = floor(C* t / rho + 1/2), s(t) = n(t) - n(t-1): an IF neuron driven by the constant current C* θ / rho
//           from θ/2. It goes on at the same rate for t > rho.
//   front:  s(t) = [t <= C*] for t <= rho, and the same again in every further rho steps.
#pragma once

#include <cstdint>

#include "macros.h"

namespace cos_ext {

// Who fires at each of `steps` steps; count[i] receives Σ s(t). Nothing may overflow: rho <= 2^24.
template <bool Even, int W, class Out>
COS_HD void emit_planned(const int32_t (&desired)[W], int32_t (&count)[W], int32_t rho, int64_t steps, Out& out) {
  int32_t phase[W];  // 2 rho (C* t / rho + 1/2) modulo 2 rho
  COS_LANES
  for (int i = 0; i < W; ++i) {
    phase[i] = rho;
    count[i] = 0;
  }
  int32_t period = 0;  // t - 1 modulo rho
  for (int64_t t = 0; t < steps; ++t) {
    auto s = out.open(t);
    if constexpr (Even) {
      COS_LANES
      for (int i = 0; i < W; ++i) {
        const int32_t next = phase[i] + 2 * desired[i];
        const bool fired = next >= 2 * rho;
        phase[i] = fired ? next - 2 * rho : next;
        s(i, fired);
        count[i] += fired;
      }
    } else {
      COS_LANES
      for (int i = 0; i < W; ++i) {
        const bool fired = period < desired[i];
        s(i, fired);
        count[i] += fired;
      }
    }
    out.close(t, s);
    period = period + 1 == rho ? 0 : period + 1;
  }
}

}  // namespace cos_ext
