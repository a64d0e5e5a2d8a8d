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
      check(offset_spikes(moved, theta, 100.f, 200.f) == static_cast<float>(expected), "exact floor", k, ulp);
    }
  }
  check(offset_spikes(std::numeric_limits<double>::quiet_NaN(), 1., 0., 4.) == 0, "NaN residual");
  check(offset_spikes(-std::numeric_limits<double>::infinity(), 1., 1., 4.) == -1, "negative infinite residual");
}

namespace {

// Clipped to ±most; r - qθ has the exact sign in double.
float exact_floor_of(float r, float theta, double most) {
  if (std::isnan(r)) return 0;
  double q = std::floor(static_cast<double>(r) / theta);
  if (!(std::fabs(q) <= most)) return static_cast<float>(q > 0 ? most : -most);
  while (std::fma(-q, static_cast<double>(theta), static_cast<double>(r)) < 0) --q;
  while (std::fma(-(q + 1), static_cast<double>(theta), static_cast<double>(r)) >= 0) ++q;
  return static_cast<float>(std::fmin(std::fmax(q, -most), most));
}

// 1/θ as far off as a GPU's estimate may be, and further.
template <int Ulps>
struct Off {
  static float floor(float r, float theta) {
    return ByReciprocal::floor_by(r, theta, [](float x) {
      float inverse = 1 / x;
      for (int i = 0; i < (Ulps < 0 ? -Ulps : Ulps); ++i) inverse = std::nextafter(inverse, Ulps < 0 ? 0.f : 1e38f);
      return inverse;
    });
  }
};

void floors_of(float r, float theta) {
  for (const float most : {16.f, 1048576.f}) {
    const float expected = exact_floor_of(r, theta, static_cast<double>(most));
    const float got[] = {offset_spikes<ByDivision>(r, theta, most, 2 * most),
                         offset_spikes<ByReciprocal>(r, theta, most, 2 * most), offset_spikes<Off<2>>(r, theta, most, 2 * most),
                         offset_spikes<Off<-2>>(r, theta, most, 2 * most)};
    for (int i = 0; i < 4; ++i) check(got[i] == expected, "floor of r/θ", i, static_cast<long long>(expected));
  }
}

}  // namespace

void floors_without_division() {
  std::mt19937 random(2);
  using Limits = std::numeric_limits<float>;
  const auto number = [&](int low, int high) {  // a mantissa and an exponent
    return std::ldexp(1.f + static_cast<float>(random() % 8388608) / 8388608, low + static_cast<int>(random() % (high - low)));
  };
  for (int i = 0; i < 300000; ++i) {
    const float theta = i % 3 ? number(-12, 12) : number(-149, 128);
    const int k = static_cast<int>(random() % 4 ? random() % 33 : random() % 2097153) - (i % 2 ? 16 : 1048576);
    const float multiple = static_cast<float>(static_cast<double>(k) * theta);
    for (const float towards : {-Limits::infinity(), multiple, Limits::infinity()})
      floors_of(std::nextafter(multiple, towards), theta);
    floors_of(number(-149, 128), theta);
    floors_of(-number(-149, 128), theta);
  }
  for (const float theta : {Limits::denorm_min(), Limits::min(), 1.f, Limits::max()}) {
    for (const float r : {0.f, Limits::denorm_min(), Limits::min(), 1.f, Limits::max(), Limits::infinity()}) {
      floors_of(r, theta);
      floors_of(-r, theta);
    }
    floors_of(Limits::quiet_NaN(), theta);
  }
}

}  // namespace cos_ext::test
