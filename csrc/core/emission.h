// Emission of a known number of spikes, C* over every rho steps, in an order of our own. Exact by construction: the next
// layer's count over rho steps depends on the number of spikes alone. Integers only; no memory layout, no torch.
//
//   even:   n(t) = floor(C* t / rho + 1/2), s(t) = n(t) - n(t-1): an IF neuron driven by the constant current C* θ / rho
//           from θ/2. It goes on at the same rate for t > rho.
//   front:  s(t) = [t <= C*] for t <= rho, and the same again in every further rho steps.
#pragma once

#include <cstdint>

#include "macros.h"
#include "neuron.h"

namespace cos_ext {

// Who fires at steps t = first, first + 1, ... (from 0), of whole numbers I, an int32_t or a vector of integers a lane each;
// count[i] grows by them. phase[i] is kept from call to call, and is rho before the first. Nothing may overflow: rho <= 2^24.
template <bool Even, class I, int W, class Out>
COS_HD void emit_planned_from(int64_t first, const I (&desired)[W], I (&phase)[W], I (&count)[W], int32_t rho, int64_t steps,
                              Out& out) {
  int32_t period = Even ? 0 : static_cast<int32_t>(first % rho);
  for (int64_t t = first; t < first + steps; ++t) {
    auto s = out.open(t);
    COS_LANES
    for (int i = 0; i < W; ++i) {
      if constexpr (Even) {  // phase: 2 rho (C* t / rho + 1/2) modulo 2 rho
        const I next = phase[i] + 2 * desired[i];
        const auto fired = next >= 2 * rho;
        phase[i] = fired ? next - 2 * rho : next;
        s(i, fired);
        CountOf<I>::add(count[i], fired);
      } else {
        const auto fired = desired[i] > period;
        s(i, fired);
        CountOf<I>::add(count[i], fired);
      }
    }
    out.close(t, s);
    period = period + 1 == rho ? 0 : period + 1;
  }
}

// All steps at once.
template <bool Even, int W, class Out>
COS_HD void emit_planned(const int32_t (&desired)[W], int32_t (&count)[W], int32_t rho, int64_t steps, Out& out) {
  int32_t phase[W];
  COS_LANES
  for (int i = 0; i < W; ++i) {
    phase[i] = rho;
    count[i] = 0;
  }
  emit_planned_from<Even>(0, desired, phase, count, rho, steps, out);
}

}  // namespace cos_ext
