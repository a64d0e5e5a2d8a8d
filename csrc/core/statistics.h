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
enum Tally : int32_t {
  kTallySpikes,
  kTallySilent,
  kTallySaturated,
  kTallyClipping,
  kTallyQuantisation,
  kTallyUnbounded,
  kTallies
};

constexpr int32_t kMaxTallyRho = 256;         // a histogram must fit where it is counted
// Units of the errors' sums, in spikes. A neuron adds less than 2^32 + 1 of them, so that no sum over 2^30 neurons overflows:
// a quantisation error is at most kMaxTallyRho, and a neuron with more clipping than kMostClipped adds to kTallyUnbounded alone.
constexpr double kQuantisationUnit = 1.0 / (1 << 24), kClippingUnit = 1.0 / (1 << 20);
constexpr double kMostClipped = 4096;

inline int64_t tally_size(int64_t rho) { return 2 * rho + 1 + kTallies; }

struct ErrorSplit {
  int64_t clipping, quantisation;
  int32_t unbounded;  // u is NaN, +inf, or huge
};

// r: residual of the first watch from v_init; count: its N.
template <class S>
COS_HD ErrorSplit error_split(S r, S v_init, S theta, int32_t count, int32_t psi, int32_t rho) {
  const S u = (r - v_init) / theta + static_cast<S>(count), most = static_cast<S>(rho);
  const S over = u - most;
  const bool bounded = over <= S(kMostClipped);  // not so NaN
  const S inside = u > S(0) ? (u < most ? u : most) : S(0);
  const S rounded = inside - static_cast<S>(count + psi);
  const S clipped = bounded && over > S(0) ? over : S(0);
  const S quantised = bounded ? (rounded < S(0) ? -rounded : rounded) : S(0);
  return {static_cast<int64_t>(clipped * S(1 << 20)), static_cast<int64_t>(quantised * S(1 << 24)), !bounded};
}

}  // namespace cos_ext
