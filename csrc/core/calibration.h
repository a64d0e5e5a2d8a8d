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

COS_HD int32_t absolute(int32_t x) { return x < 0 ? -x : x; }
COS_HD float absolute(float x) { return fabsf(x); }

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

// What a watch over rho steps leaves behind. N counts spikes.
template <class V, int W, class N = count_t<V>>
struct Watch {
  V v[W];           // residual membrane potential r = v(rho)
  V min_fired[W];   // min of m(t) where s(t) = 1; +inf if it never fired
  V max_silent[W];  // max of v(t) where s(t) = 0; -inf if it always fired
  N count[W];       // N
};

// `in.watched(rho, f)` calls f(x(t)) for the first rho steps, in order. It may call f(x(1), true_type) for the first one, which
// then starts the extremes: a GPU saves the starting values.
template <class V, int W, class N, class Theta, class Start, class In>
COS_HD void watch(Watch<V, W, N>& w, const Start& v_init, const Theta& theta, int64_t rho, In& in) {
  const V inf = V{} + std::numeric_limits<scalar_t<V>>::infinity();
  COS_LANES
  for (int i = 0; i < W; ++i) {
    w.v[i] = v_init[i];
    w.min_fired[i] = inf;
    w.max_silent[i] = -inf;
    w.count[i] = N{};
  }
  in.watched(rho, [&](const auto& x, auto... first) {
    COS_LANES
    for (int i = 0; i < W; ++i) {
      V m;
      const auto fired = step(w.v[i], x(i), theta[i], SoftReset{}, m);
      if constexpr (sizeof...(first) > 0) {
        w.min_fired[i] = fired ? m : inf;
        w.max_silent[i] = fired ? -inf : m;  // may be NaN, and then is as good as -inf
        w.count[i] = fired ? N{1} : N{0};
      } else {
        w.min_fired[i] = least(w.min_fired[i], fired, m);
        w.max_silent[i] = greatest(w.max_silent[i], !fired, m);
        CountOf<N>::add(w.count[i], fired);
      }
    }
  });
}

COS_HD float exact_floor(float x) { return floorf(x); }
COS_HD double exact_floor(double x) { return floor(x); }
COS_HD float fused(float a, float b, float c) { return fmaf(a, b, c); }
COS_HD double fused(double a, double b, double c) { return fma(a, b, c); }

// floor(r/θ), exactly, where it is at most 2^24 in size; elsewhere something as large, of the same sign. NaN stays.
struct ByDivision {
  template <class S>
  static COS_HD S floor(S r, S theta) {
    const S q = exact_floor(r / theta);
    // The division may round up to the next integer. A correctly rounded r - qθ has the exact sign, so one look mends it.
    return fused(-q, theta, r) < 0 ? q - 1 : q;
  }
};
// The same where it is at most 2^20 in size, without a division: r times an estimate of 1/θ, good to 2^-21, is less than 1/2
// off, so that the nearest whole number is the floor or the one above.
struct ByReciprocal {
  static COS_HD float estimate(float theta) {
#if defined(__CUDA_ARCH__)
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(theta));
    return inverse;
#else
    return 1 / theta;
#endif
  }
  static COS_HD float floor(float r, float theta) {
    return floor_by(r, theta, [](float x) { return estimate(x); });
  }
  template <class Estimate>
  static COS_HD float floor_by(float r, float theta, const Estimate& estimate) {
    // θ and r are scaled where the estimate would leave the range of normal numbers.
    const float scale = theta > 0x1p100f ? 0x1p-64f : theta < 0x1p-100f ? 0x1p64f : 1.f;
    constexpr float kWhole = 12582912;  // 3 · 2^22: adding it rounds to a whole number
    const float near = fused(r * scale, estimate(theta * scale), kWhole) - kWhole;
    return fused(-near, theta, r) < 0 ? near - 1 : near;
  }
};

// x clipped to [low, high]; NaN gives 0. On a GPU NaN may stay: it compares as 0 does, and becomes the integer 0.
template <class S>
COS_HD S clipped(S x, S low, S high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(S) == 4) {
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(low));
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(high));
    return x;
  }
#endif
  x = x > low ? x : (x == x ? low : S(0));
  return x < high ? x : high;
}

// ψ of one neuron: positive, spikes missing; negative, spikes too many. count is N.
template <class Floor = ByDivision, class S>
COS_HD S offset_spikes(S r, S theta, S count, S rho) {
  return clipped(Floor::floor(r, theta), -count, rho - count);
}

// C* of one neuron that is driven by the same mean current for rho steps.
template <class S>
COS_HD int32_t desired_count(S mean, S v_init, S theta, int32_t rho) {
  const S steps = static_cast<S>(rho);
  return static_cast<int32_t>(offset_spikes(mean * steps + v_init, theta, S(0), steps));
}

// One shift of v(0) of one neuron, from the latest watch. Rounding can leave nothing to remove or to add where inputs
// exceed θ by the precision of the state type; such a neuron is left alone instead of being shifted to infinity.
template <class S, class N>
COS_HD S shifted(S v_init, S theta, N psi, N k, S min_fired, S max_silent) {
  const S wanted = psi < 0 ? min_fired - theta * S(0.999) : theta * S(1.001) - max_silent;
  const S size = greatest(theta, true, wanted), by = psi < 0 ? -size : size;
  const N far = absolute(psi);
  return ((far > k) & (size < std::numeric_limits<S>::infinity())) ? v_init + by : v_init;
}

// The first watch of a group of W neurons, and ψ and N of every neuron.
// `look(w, v_init, k)` watches rho steps from v_init with watch(). `noted(w, v_init)` is called once, with psi and count set.
// offset(r, θ, N) is ψ of one neuron.
template <class S, int W, class N, class Theta, class Offset, class Look, class Noted>
COS_HD void measure_by(Watch<S, W, N>& w, const S (&v_init)[W], N (&psi)[W], N (&count)[W], const Theta& theta,
                       const Offset& offset, const Look& look, const Noted& noted) {
  look(w, v_init, 0);
  COS_LANES
  for (int i = 0; i < W; ++i) {
    count[i] = w.count[i];
    psi[i] = static_cast<N>(offset(w.v[i], theta[i], static_cast<S>(w.count[i])));
  }
  noted(w, v_init);
}
template <class Floor, class S, int W, class N, class Theta, class Look, class Noted>
COS_HD void measure(Watch<S, W, N>& w, const S (&v_init)[W], N (&psi)[W], N (&count)[W], const Theta& theta, int64_t rho,
                    const Look& look, const Noted& noted) {
  const S steps = static_cast<S>(rho);
  const auto offset = [steps](S r, S own, S n) { return offset_spikes<Floor>(r, own, n, steps); };
  measure_by(w, v_init, psi, count, theta, offset, look, noted);
}
template <class S, int W, class N, class Theta>
COS_HD void shift(S (&v_init)[W], const Watch<S, W, N>& w, const N (&psi)[W], const Theta& theta, N k) {
  COS_LANES
  for (int i = 0; i < W; ++i) v_init[i] = shifted(v_init[i], theta[i], psi[i], k, w.min_fired[i], w.max_silent[i]);
}

// The whole calibration of a group of W neurons. v_init is shifted in place; psi and count (N) are those before calibration.
// For k > 0, `look` may leave out neurons with |ψ| <= k. iterations < 0: until no neuron of the group is left.
template <class S, int W, class N, class Theta, class Offset, class Look, class Noted>
COS_HD void calibrate_by(S (&v_init)[W], N (&psi)[W], N (&count)[W], const Theta& theta, const Offset& offset, int64_t iterations,
                         const Look& look, const Noted& noted) {
  Watch<S, W, N> w;
  measure_by(w, v_init, psi, count, theta, offset, look, noted);
  int32_t worst = 0;
  COS_LANES
  for (int i = 0; i < W; ++i) {
    const auto size = static_cast<int32_t>(absolute(psi[i]));
    worst = size > worst ? size : worst;
  }
  const int64_t rounds = iterations < 0 || iterations > worst ? worst : iterations;
  for (int32_t k = 0; k < rounds; ++k) {
    if (k > 0) look(w, v_init, k);
    shift(v_init, w, psi, theta, static_cast<N>(k));
  }
}
template <class Floor = ByDivision, class S, int W, class N, class Theta, class Look, class Noted>
COS_HD void calibrate(S (&v_init)[W], N (&psi)[W], N (&count)[W], const Theta& theta, int64_t rho, int64_t iterations,
                      const Look& look, const Noted& noted) {
  const S steps = static_cast<S>(rho);
  const auto offset = [steps](S r, S own, S n) { return offset_spikes<Floor>(r, own, n, steps); };
  calibrate_by(v_init, psi, count, theta, offset, iterations, look, noted);
}

}  // namespace cos_ext
