// Calibration of offset spikes (Hao et al., ICLR 2023, arXiv 2302.10685) for a group of neurons: watch rho steps, count the
// offset spikes ψ, shift v(0), watch again. The equations live here once, for CPU and CUDA; no memory layout, no torch.
//
//   N = Σ s(t), r = v(rho) over the first rho steps from the unshifted v(0);  ψ = clip(floor(r/θ), -N, rho - N)
//   iteration k touches the neurons with ψ < -k or ψ > k:
//     one spike less:  v(0) -= max(θ, min over s(t)=1 of m(t) - θ(1-ε))
//     one spike more:  v(0) += max(θ, θ(1+ε) - max over s(t)=0 of v(t))           ε = 1e-3
// A NaN residual gives ψ = 0: the neuron is left alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "macros.h"
#include "neuron.h"

namespace cos_ext {

// The extreme of what was kept and a candidate, where the candidate counts and is no NaN. Not for the sign of a zero. A GPU
// takes one predicated instruction for it, a CPU a blend and a minimum: the same results.
template <class V, class Mask>
COS_HD V least(V kept, Mask counts, V candidate) {
#if defined(__CUDA_ARCH__)
  return counts ? fmin(kept, candidate) : kept;
#else
  const V limited = counts ? candidate : V{} + std::numeric_limits<scalar_t<V>>::infinity();
  return limited < kept ? limited : kept;
#endif
}
template <class V, class Mask>
COS_HD V greatest(V kept, Mask counts, V candidate) {
#if defined(__CUDA_ARCH__)
  return counts ? fmax(kept, candidate) : kept;
#else
  const V limited = counts ? candidate : V{} - std::numeric_limits<scalar_t<V>>::infinity();
  return limited > kept ? limited : kept;
#endif
}

// What a watch over rho steps leaves behind.
template <class V, int W>
struct Watch {
  V v[W];              // residual membrane potential r = v(rho)
  V min_fired[W];      // min of m(t) where s(t) = 1; +inf if it never fired
  V max_silent[W];     // max of v(t) where s(t) = 0; -inf if it always fired
  count_t<V> count[W];  // N
};

// `in.watched(rho, f)` calls f(x(t)) for the first rho steps, in order.
template <class V, int W, class Theta, class Start, class In>
COS_HD void watch(Watch<V, W>& w, const Start& v_init, const Theta& theta, int64_t rho, In& in) {
  const V inf = V{} + std::numeric_limits<scalar_t<V>>::infinity();
  COS_LANES
  for (int i = 0; i < W; ++i) {
    w.v[i] = v_init[i];
    w.min_fired[i] = inf;
    w.max_silent[i] = -inf;
    w.count[i] = count_t<V>{};
  }
  in.watched(rho, [&](const auto& x) {
    COS_LANES
    for (int i = 0; i < W; ++i) {
      V m;
      const auto fired = step(w.v[i], x(i), theta[i], SoftReset{}, m);
      w.min_fired[i] = least(w.min_fired[i], fired, m);
      w.max_silent[i] = greatest(w.max_silent[i], !fired, m);
      ValueOf<V>::add(w.count[i], fired);
    }
  });
}

COS_HD float exact_floor(float x) { return floorf(x); }
COS_HD double exact_floor(double x) { return floor(x); }
COS_HD float fused(float a, float b, float c) { return fmaf(a, b, c); }
COS_HD double fused(double a, double b, double c) { return fma(a, b, c); }

// ψ of one neuron: positive, spikes missing; negative, spikes too many.
template <class S>
COS_HD int32_t offset_spikes(S r, S theta, int32_t count, int32_t rho) {
  const S low = static_cast<S>(-count), high = static_cast<S>(rho - count);
  S q = exact_floor(r / theta);
  // The division may round up to the next integer. A correctly rounded r - qθ has the exact sign, so one look mends it.
  q = fused(-q, theta, r) < 0 ? q - 1 : q;
  q = q > low ? q : (q == q ? low : S(0));
  q = q < high ? q : high;
  return static_cast<int32_t>(q);
}

// C* of one neuron that is driven by the same mean current for rho steps.
template <class S>
COS_HD int32_t desired_count(S mean, S v_init, S theta, int32_t rho) {
  return offset_spikes(mean * static_cast<S>(rho) + v_init, theta, 0, rho);
}

// One shift of v(0) of one neuron, from the latest watch. Rounding can leave nothing to remove or to add where inputs
// exceed θ by the precision of the state type; such a neuron is left alone instead of being shifted to infinity.
template <class S>
COS_HD S shifted(S v_init, S theta, int32_t psi, int32_t k, S min_fired, S max_silent) {
  const S inf = std::numeric_limits<S>::infinity();
  const S down = min_fired - theta * S(0.999);
  const S up = theta * S(1.001) - max_silent;
  const S less = v_init - (down > theta ? down : theta);
  const S more = v_init + (up > theta ? up : theta);
  S v = v_init;
  v = ((psi < -k) & (min_fired < inf)) ? less : v;
  v = ((psi > k) & (max_silent > -inf)) ? more : v;
  return v;
}

// The whole calibration of a group of W neurons. v_init is shifted in place; psi and count (N) are those before calibration.
// `look(w, v_init, k)` watches rho steps from v_init with watch(); for k > 0 it may leave out neurons with |ψ| <= k.
// `noted(w, v_init)` is called once, after the first watch, with psi and count set and v_init not shifted yet.
// iterations < 0: until no neuron of the group is left, at most rho rounds.
template <class S, int W, class Theta, class Look, class Noted>
COS_HD void calibrate(S (&v_init)[W], int32_t (&psi)[W], int32_t (&count)[W], const Theta& theta, int64_t rho, int64_t iterations,
                      const Look& look, const Noted& noted) {
  Watch<S, W> w;
  look(w, v_init, 0);
  COS_LANES
  for (int i = 0; i < W; ++i) {
    count[i] = w.count[i];
    psi[i] = offset_spikes(w.v[i], theta[i], w.count[i], static_cast<int32_t>(rho));
  }
  noted(w, v_init);
  int32_t worst = 0;
  COS_LANES
  for (int i = 0; i < W; ++i) {
    const int32_t size = psi[i] < 0 ? -psi[i] : psi[i];
    worst = size > worst ? size : worst;
  }
  const int64_t rounds = iterations < 0 || iterations > worst ? worst : iterations;
  for (int32_t k = 0; k < rounds; ++k) {
    if (k > 0) look(w, v_init, k);
    COS_LANES
    for (int i = 0; i < W; ++i) v_init[i] = shifted(v_init[i], theta[i], psi[i], k, w.min_fired[i], w.max_silent[i]);
  }
}

}  // namespace cos_ext
