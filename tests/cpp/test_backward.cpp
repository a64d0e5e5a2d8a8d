// The gradient of neurons against a plain loop in the same order, bit for bit where the arithmetic is the core's, with every
// buffer exactly as large as it must be.
#include <memory>
#include <random>
#include <vector>

#include "core/current.h"
#include "core/surrogate.h"
#include "job.h"
#include "tests.h"
#include "under_test.h"

namespace cos_ext::test {
namespace {

template <bool Hard, bool Detached, class T, class Phi>
void gradient(std::mt19937& random, DType dtype, Surrogate surrogate) {
  using S = state_t<T>;
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  const int64_t sizes[] = {1, 17, 255, 256, 257, 700, 768}, n = sizes[below(7)];
  const int64_t steps = below(3) ? 1 + below(9) : 10 + below(30);
  const bool once = below(3) == 0, spread = below(2);
  const int64_t apart = spread ? 2 : 1, rows = once ? 1 : steps;
  std::normal_distribution<float> normal;
  const auto drawn = [&](int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    for (T& value : values) value = FromState<T>::call(static_cast<S>(0.7f * normal(random) + 0.3f));
    return values;
  };
  const bool fused = below(2), added = fused && !once;
  const auto other = drawn(steps * n);
  std::vector<S> bias(static_cast<size_t>(n));
  for (S& value : bias) value = static_cast<S>(0.01 * static_cast<double>(below(100)) - 0.5);
  const auto x = drawn((rows * n - 1) * apart + 1), g = drawn(steps * n);
  std::vector<S> theta(static_cast<size_t>(n)), v(static_cast<size_t>(n));
  for (S& value : theta) value = static_cast<S>(0.5 + 0.01 * static_cast<double>(below(100)));
  for (S& value : v) value = static_cast<S>(0.01 * static_cast<double>(below(50)));

  Job job;
  job.dtype = dtype;
  job.neurons = n, job.steps = steps;
  job.hard_reset = Hard, job.v_reset = -0.25;
  job.half_theta_init = false;
  const auto line = [&](int64_t stride) { return make_layout({n}, {stride}, {0}); };
  const auto in = exact(x), grad = exact(g);
  const auto limits = exact(theta), starts = exact(v);
  job.x = in.get(), job.x_layout = line(apart), job.x_time = steps > 1 && !once ? n * apart : 0;
  job.theta.data = limits.get(), job.theta.layout = line(1);
  job.v_init.data = starts.get(), job.v_init.layout = line(1);
  job.result_layout = line(1);
  const auto shifts = exact(bias);
  const auto residual = exact(other);
  if (fused) job.bias.data = shifts.get(), job.bias.layout = line(1);
  if (added) job.residual = residual.get(), job.residual_layout = line(1), job.residual_time = n;
  Gradients& back = job.gradients;
  back.surrogate = surrogate, back.alpha = 1.5, back.detach_reset = Detached;
  back.sent = grad.get(), back.sent_layout = line(1), back.sent_time = n;
  const auto out = exact(std::vector<T>(static_cast<size_t>(rows * n)));
  const std::vector<S> blank(static_cast<size_t>(n));
  const auto of_theta = exact(blank), of_v = exact(blank), of_bias = exact(blank);
  job.spikes = out.get(), job.spikes_layout = line(1), job.spikes_time = n;
  back.theta = of_theta.get(), back.v_init = of_v.get(), back.bias = of_bias.get();
  run_backward(job);

  const Phi phi(1.5);
  for (int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<size_t>(i);
    std::vector<S> m(static_cast<size_t>(steps));
    S now = v[at], d = 0, dtheta = 0, sum = 0;
    for (int64_t t = 0; t < steps; ++t) {
      T seen = x[static_cast<size_t>(((once ? 0 : t) * n + i) * apart)];
      if (fused) seen = affine(seen, S(1), bias[at]);
      if (added) seen = with_residual(seen, other[static_cast<size_t>(t * n + i)]);
      const S current = to_state(seen);
      S& potential = m[static_cast<size_t>(t)];
      Hard ? step(now, current, theta[at], HardReset<S>{S(-0.25)}, potential)
           : step(now, current, theta[at], SoftReset{}, potential);
    }
    for (int64_t t = steps - 1; t >= 0; --t) {
      const S coming = to_state(g[static_cast<size_t>(t * n + i)]);
      step_back<Hard>(m[static_cast<size_t>(t)], theta[at], S(1) / theta[at], S(-0.25), phi, Detached, coming, d, dtheta);
      sum += d;
      if (!once) check(same(out[static_cast<size_t>(t * n + i)], FromState<T>::call(d)), "gradient of x", t, i);
    }
    if (once) check(same(out[at], FromState<T>::call(sum)), "summed gradient of x", i, n);
    check(same(of_theta[at], dtheta) && same(of_v[at], d), "gradients of theta and v_init", i, n);
    check(same(of_bias[at], sum), "gradient of the bias", i, n);
  }
}

template <class T, class Phi>
void resets(std::mt19937& random, DType dtype, Surrogate surrogate) {
  gradient<false, false, T, Phi>(random, dtype, surrogate);
  gradient<false, true, T, Phi>(random, dtype, surrogate);
  gradient<true, false, T, Phi>(random, dtype, surrogate);
  gradient<true, true, T, Phi>(random, dtype, surrogate);
}

template <class T>
void surrogates(std::mt19937& random, DType dtype) {
  using S = state_t<T>;
  resets<T, ATan<S>>(random, dtype, Surrogate::ATan);
  resets<T, Sigmoid<S>>(random, dtype, Surrogate::Sigmoid);
  resets<T, Triangle<S>>(random, dtype, Surrogate::Triangle);
  resets<T, Rectangle<S>>(random, dtype, Surrogate::Rectangle);
  resets<T, FastSigmoid<S>>(random, dtype, Surrogate::FastSigmoid);
}

}  // namespace

void gradients() {
  std::mt19937 random(14);
  for (int i = 0; i < 12; ++i) {
    surrogates<float>(random, DType::Float32);
    surrogates<double>(random, DType::Float64);
    surrogates<Half>(random, DType::Float16);
    surrogates<BFloat16>(random, DType::BFloat16);
  }
}

}  // namespace cos_ext::test
