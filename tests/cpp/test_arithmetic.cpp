// The core's arithmetic by itself: conversions between storage and state, and the exact floor behind offset spikes. No kernels.
#include <cmath>
#include <limits>
#include <random>

#include "core/calibration.h"
#include "core/dtypes.h"
#include "tests.h"

namespace cos_ext::test {

void half_conversions() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    const double sign = bits & 0x8000 ? -1 : 1;
    const float value = to_state(half);
    if (exponent == 31 && mantissa) {
      check(std::isnan(value), "half NaN", bits);
      continue;
    }
    const double expected = exponent == 31  ? sign * std::numeric_limits<double>::infinity()
                            : exponent == 0 ? sign * std::ldexp(mantissa, -24)
                                            : sign * std::ldexp(1024 + mantissa, exponent - 25);
    check(value == expected && std::signbit(value) == (sign < 0), "half to float", bits);
    check(FromState<Half>::call(value).bits == bits, "float to half and back", bits);
    // Halfway to the next half, and just beside it: ties go to even.
    if ((bits & 0x7fff) < 0x7bff) {
      const float next = to_state(Half{static_cast<uint16_t>(bits + 1)}), middle = (value + next) / 2;
      check(FromState<Half>::call(middle).bits == (bits & 1 ? bits + 1 : bits), "half tie", bits);
      check(FromState<Half>::call(std::nextafter(middle, next)).bits == bits + 1, "half above a tie", bits);
      check(FromState<Half>::call(std::nextafter(middle, value)).bits == bits, "half below a tie", bits);
    }
  }
  check(FromState<Half>::call(65519.f).bits == 0x7bff, "largest half");
  check(FromState<Half>::call(65520.f).bits == 0x7c00, "half overflow");
  check(FromState<BFloat16>::call(1.00390625f).bits == 0x3f80, "bfloat16 tie to even");
  check(FromState<BFloat16>::call(1.01171875f).bits == 0x3f82, "bfloat16 tie to even, up");
}

void exact_offset_spikes() {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> thetas(0.01f, 30.f);
  for (int i = 0; i < 200000; ++i) {
    const float theta = thetas(random);
    const int k = static_cast<int>(random() % 41) - 20;
    float r = static_cast<float>(static_cast<double>(k) * theta);
    for (int ulp = 0; ulp < 3; ++ulp) {  // at, above and below a multiple of θ
      const float moved = ulp == 0 ? r : std::nextafter(r, ulp == 1 ? 1e9f : -1e9f);
      const double exact = static_cast<double>(moved) - static_cast<double>(k) * theta;  // exact in double
      const int expected = exact < 0 ? k - 1 : k;
      check(offset_spikes(moved, theta, 100, 200) == expected, "exact floor", k, ulp);
    }
  }
  check(offset_spikes(std::numeric_limits<float>::quiet_NaN(), 1.f, 0, 4) == 0, "NaN residual");
  check(offset_spikes(std::numeric_limits<float>::infinity(), 1.f, 1, 4) == 3, "infinite residual");
  check(offset_spikes(-std::numeric_limits<double>::infinity(), 1., 1, 4) == -1, "negative infinite residual");
}

}  // namespace cos_ext::test
