// What is counted of a layer while it is simulated, and the split of a neuron's conversion error. Integers only, so that sums do
// not depend on their order, on the split of the data or on the device. No memory layout, no torch.
//
//   u = (r - v(0))/θ + N, the input of the first rho steps in spikes, r and N those before calibration. An ANN's rectifier would
//   answer max(u, 0). What the neuron lacks splits, without remainder but for the signs, into
//     clipping        max(u - rho, 0)                  beyond the threshold
//     quantisation    abs(clip(u, 0, rho) - C*)        between two counts
//     unevenness      abs(C* - N) = abs(ψ)             spikes that arrived unevenly; what calibration removes
#pragma once

#include <cstdint>

#include "macros.h"

namespace cos_ext {

// The row of sums: how many neurons have ψ = -rho..rho, and then these.
enum Tally : int32_t { kTallySpikes, kTallySilent, kTallySaturated, kTallyClipping, kTallyQuantisation, kTallies };

constexpr int32_t kMaxTallyRho = 256;         // a histogram must fit where it is counted
constexpr double kErrorUnit = 1.0 / (1 << 24);  // of the errors' sums, in spikes

inline int64_t tally_size(int64_t rho) { return 2 * rho + 1 + kTallies; }

// In multiples of kErrorUnit, at most 2^54 each; 0 for NaN.
template <class S>
COS_HD int64_t in_error_units(S spikes) {
  const S most = S(1 << 30);
  const S kept = spikes < most ? spikes : (spikes == spikes ? most : S(0));
  return static_cast<int64_t>(kept * S(1 << 24));
}

// r: residual of the first watch from v_init; count: its N.
template <class S>
COS_HD void error_split(S r, S v_init, S theta, int32_t count, int32_t psi, int32_t rho, int64_t& clipping,
                        int64_t& quantisation) {
  const S u = (r - v_init) / theta + static_cast<S>(count), most = static_cast<S>(rho);
  const S inside = u > S(0) ? (u < most ? u : most) : S(0);
  const S rounded = inside - static_cast<S>(count + psi);
  clipping = in_error_units(u > most ? u - most : S(0));
  quantisation = in_error_units(rounded < S(0) ? -rounded : rounded);
}

}  // namespace cos_ext
