// The QCFS activation and its gradients against a plain loop, bit for bit but for the order of the sum, with every buffer exactly
// as large as it must be.
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "core/dtypes.h"
#include "tests.h"
#include "under_test.h"

namespace cos_ext::test {
namespace {

template <class T>
void activation(std::mt19937& random, DType dtype, int64_t n, int64_t levels, bool noisy) {
  using S = state_t<T>;
  std::normal_distribution<float> normal;
  const auto drawn = [&](float scale) {
    std::vector<T> values(static_cast<size_t>(n));
    for (T& value : values) value = FromState<T>::call(static_cast<S>(scale * normal(random)));
    return values;
  };
  const auto z = drawn(2), eps = drawn(0.3f), g = drawn(1);
  const S theta = static_cast<S>(1.7), steps = static_cast<S>(levels);
  const auto in = exact(z), noise = exact(eps), grad = exact(g), out = exact(z), of_z = exact(z);
  Qcfs job;
  job.dtype = dtype, job.elements = n, job.levels = levels, job.theta = &theta;
  job.z = in.get(), job.noise = noisy ? noise.get() : nullptr, job.out = out.get();
  run_qcfs(job);
  job.grad = grad.get(), job.out = of_z.get(), job.count = qcfs_parts(n, sizeof(T));
  const auto parts = exact(std::vector<double>(static_cast<size_t>(job.count), -1));
  job.parts = parts.get();
  run_qcfs(job);

  double sum = 0, size = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<size_t>(i);
    const S value = to_state(z[at]), share = value * steps / theta, slope = to_state(g[at]);
    const S u = noisy ? share + to_state(eps[at]) : share;
    const S level = std::fmin(std::fmax(std::floor(u + S(0.5)), S(0)), steps);
    const bool inside = noisy ? u >= 0 && u <= steps : value >= 0 && value <= theta;
    check(same(FromState<T>::call(level / steps * theta), out[at]), "QCFS", i, n);
    check(same(FromState<T>::call(inside ? slope : S(0)), of_z[at]), "the gradient of z", i, n);
    const S term = slope * (level - (inside ? share : S(0)));
    sum += static_cast<double>(term) / static_cast<double>(levels);
    size += std::fabs(static_cast<double>(term));
  }
  double found = 0;
  for (int64_t i = 0; i < job.count; ++i) found += parts[static_cast<size_t>(i)];
  check(std::fabs(found - sum) <= 1e-12 * size, "the gradient of the threshold", n, levels);
}

}  // namespace

void activations() {
  std::mt19937 random(9);
  for (const int64_t n : {1, 3, 8, 17, 255, 256, 257, 4095, 4096, 4097, 9001}) {
    for (const int64_t levels : {1, 3, 8, 1000}) {
      for (const bool noisy : {false, true}) {
        activation<float>(random, DType::Float32, n, levels, noisy);
        activation<double>(random, DType::Float64, n, levels, noisy);
        activation<Half>(random, DType::Float16, n, levels, noisy);
        activation<BFloat16>(random, DType::BFloat16, n, levels, noisy);
      }
    }
  }
}

}  // namespace cos_ext::test
