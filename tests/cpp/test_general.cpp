// The core of general neurons by itself: levels against every level compared one by one, SIMD vectors against numbers, whole
// plans. No kernels.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "core/general.h"
#include "core/vector.h"
#include "tests.h"

namespace cos_ext::test {
namespace {

template <class S>
bool alike(S a, S b) {
  return same(a, b) || (std::isnan(a) && std::isnan(b));
}

// Every kind of float: all exponents, few and many bits, both signs, infinities and NaN.
float any_float(std::mt19937& random) {
  const uint32_t bits = static_cast<uint32_t>(random()) & (random() % 2 ? 0xffffe000u : 0xffffffffu);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <class T>
void vectors_round_as_numbers() {
  using V = vector_t<float, 8>;
  std::mt19937 random(1);
  for (int round = 0; round < 100000; ++round) {
    float from[8], to[8];
    for (float& each : from) each = any_float(random);
    V x = load_vector<V>(from);
    Stored<T, V>::round(x);
    store_vector(to, x);
    for (int i = 0; i < 8; ++i) check(alike(to[i], to_state(FromState<T>::call(from[i]))), "vector rounded to storage", round, i);
  }
}

// The largest k in 1..most that m reaches, one by one.
template <class S>
S reached_one_by_one(S m, S first, S theta, int most, bool beyond) {
  int k = 0;
  for (int next = 1; next <= most; ++next) {
    const S bound = first + static_cast<S>(next - 1) * theta;
    if (beyond ? m > bound : m >= bound) k = next;
  }
  return static_cast<S>(k);
}

template <class S, class V, int N>
void levels_and_steps() {
  std::mt19937 random(2);
  std::uniform_real_distribution<double> unit(0, 1);
  const S inf = std::numeric_limits<S>::infinity(), nan = std::numeric_limits<S>::quiet_NaN();
  for (int round = 0; round < 20000; ++round) {
    const int most = 1 + static_cast<int>(random() % 40);
    Rule<S> rule{};
    rule.s_max = static_cast<S>(most);
    rule.s_min = static_cast<S>(-static_cast<int>(random() % 20));
    rule.n_min = random() % 2 ? -inf : S(-3);
    rule.n_max = random() % 2 ? inf : S(5);
    rule.upper = random() % 2 ? S(1) : static_cast<S>(0.1 + unit(random));
    rule.lower = rule.s_min < 0 ? static_cast<S>(random() % 2 ? 0 : unit(random)) : inf;
    rule.leak = random() % 2 ? S(1) : S(0.9);
    rule.ratio = S(0.75);
    rule.strict = random() % 2;
    rule.hard = random() % 2;
    rule.gated = random() % 2;
    rule.rungs = 4;
    S theta[N], x[N], v[N];
    for (int i = 0; i < N; ++i) {
      theta[i] = static_cast<S>(0.1 + unit(random));
      // At a threshold, or beside it, or anywhere; sometimes no number at all.
      const S at = rule.upper * theta[i] + static_cast<S>(static_cast<int>(random() % 60) - 20) * theta[i];
      const int kind = static_cast<int>(random() % 20);
      x[i] = kind == 0 ? nan : kind == 1 ? inf : kind == 2 ? -inf : kind < 8 ? at : std::nextafter(at, kind < 14 ? inf : -inf);
      v[i] = random() % 2 ? S(0) : static_cast<S>(unit(random) - 0.5);
      const S first = rule.upper * theta[i];
      const S found = levels_reached(x[i], first, theta[i], rule.s_max, rule.strict);
      check(found == reached_one_by_one(x[i], first, theta[i], most, rule.strict), "levels reached", round, i);
    }
    const auto steps = [&](auto stairs, auto predict) {
      constexpr Staircase Q = decltype(stairs)::value;
      constexpr bool P = decltype(predict)::value;
      Membrane<V> wide{load_vector<V>(v), V{}, V{}, V{}};
      Membrane<S> one[N];
      V spikes{}, q{}, m{};
      for (int i = 0; i < N; ++i) one[i] = {v[i], S(0), S(0), S(0)};
      for (int32_t t = 1; t <= 3; ++t) {
        const V theta_v = load_vector<V>(theta);
        const V value =
            general_step<Q, P, S>(rule, wide, load_vector<V>(x), V{} + S(0.125), theta_v, theta_v, false, t, spikes, q, m);
        S values[N], kept[N];
        store_vector(values, value);
        store_vector(kept, wide.v);
        for (int i = 0; i < N; ++i) {
          S count = 0, levels = 0, before = 0;
          const S sent = general_step<Q, P, S>(rule, one[i], x[i], S(0.125), theta[i], theta[i], false, t, count, levels, before);
          check(alike(sent, values[i]) && alike(one[i].v, kept[i]), "a vector steps as numbers do", round, i);
          if (Q == Staircase::Levels) {
            check(levels >= rule.s_min && levels <= rule.s_max, "levels within bounds", round, i);
            check(one[i].n >= rule.n_min && one[i].n <= rule.n_max, "count within bounds", round, i);
          }
        }
      }
    };
    steps(std::integral_constant<Staircase, Staircase::Levels>{}, std::false_type{});
    steps(std::integral_constant<Staircase, Staircase::Levels>{}, std::true_type{});
    steps(std::integral_constant<Staircase, Staircase::Ladder>{}, std::true_type{});
    steps(std::integral_constant<Staircase, Staircase::Ladder>{}, std::false_type{});
  }
}

void plans_send_what_is_desired() {
  for (int32_t rho : {1, 2, 3, 7, 16}) {
    for (int32_t low : {0, -1, -3}) {
      for (int32_t high : {1, 2, 5}) {
        for (int32_t desired = low * rho; desired <= high * rho; ++desired) {
          int32_t phase = rho, left = desired, even = 0, front = 0;
          for (int32_t t = 0; t < rho; ++t) {
            const int32_t a = send_even(Share(desired, rho), phase, rho), b = send_front(left, low, high);
            check(a >= low && a <= high && b >= low && b <= high, "a plan's levels within bounds", rho, desired);
            even += a;
            front += b;
          }
          check(even == desired && front == desired && phase == rho, "a plan sends what is desired", rho, desired);
        }
      }
    }
  }
}

}  // namespace

void general_neurons() {
  vectors_round_as_numbers<Half>();
  vectors_round_as_numbers<BFloat16>();
  levels_and_steps<float, vector_t<float, 8>, 8>();
  levels_and_steps<double, vector_t<double, 4>, 4>();
  plans_send_what_is_desired();
}

}  // namespace cos_ext::test
