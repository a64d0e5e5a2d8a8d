// The kernels against a plain loop over single neurons, with every buffer exactly as large as it must be, so that the sanitizers
// see a step beside it. Which kernels: under_test.h.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "core/calibration.h"
#include "core/current.h"
#include "core/dtypes.h"
#include "core/neuron.h"
#include "core/statistics.h"
#include "job.h"
#include "tests.h"
#include "under_test.h"

namespace cos_ext::test {
namespace {

template <class T>
constexpr DType kDType = DType::Float32;
template <>
constexpr DType kDType<double> = DType::Float64;
template <>
constexpr DType kDType<Half> = DType::Float16;
template <>
constexpr DType kDType<BFloat16> = DType::BFloat16;

int packed_cases = 0, other_cases = 0;

// One neuron at a time, with the core's scalar functions.
template <class T>
struct OneNeuron {
  using S = state_t<T>;
  std::vector<S> x;
  struct Value {
    S value;
    S operator()(int) const { return value; }
  };
  template <class F>
  void watched(int64_t rho, const F& f) const {
    for (int64_t t = 0; t < rho; ++t) f(Value{x[t]});
  }
  template <class F>
  void emitted(int64_t steps, const F& f) const {
    for (int64_t t = 0; t < steps; ++t) f(t, Value{x[t]});
  }
};
template <class T>
struct OneOutput {
  std::vector<bool>& fired;
  struct Row {
    std::vector<bool>& fired;
    int64_t t;
    void operator()(int, bool f) const { fired[t] = f; }
  };
  Row open(int64_t t) const { return {fired, t}; }
  void close(int64_t, const Row&) const {}
};

// How θ or v_init is given: one value, or by column, neuron or row.
enum Kind { kAll, kColumn, kNeuron, kRow, kKinds };

// Neurons in `rows` rows of `columns`, the column stride as given, `gap` elements between rows, `shift` before the first.
struct Case {
  int64_t rows, columns, stride, gap, shift;
  int64_t steps, rho, iterations;
  Kind theta_kind;
  bool hard, inplace, is_static;
  Kind init_kind = kAll;
  Emission emission = Emission::Calibrated;
  bool fused = false;
};

template <class T>
void kernel_case(std::mt19937& random, const Case& c) {
  using S = state_t<T>;
  const auto [rows, columns, stride, gap, shift, steps, rho, iterations, theta_kind, hard, inplace, is_static, init_kind,
              emission, fused] = c;
  const int64_t neurons = rows * columns, row = columns * stride + gap, plane = rows * row;
  const int64_t time = is_static ? 0 : plane;
  const int64_t extent = (is_static ? 0 : (steps - 1) * plane) + (rows - 1) * row + (columns - 1) * stride + 1;
  std::normal_distribution<float> normal(0.35f, 1.2f);
  std::unique_ptr<T[]> x_memory(new T[extent + shift]), out_memory(new T[(inplace ? extent : steps * neurons) + shift]);
  T *x = x_memory.get() + shift, *out = out_memory.get() + shift;
  for (int64_t i = 0; i < extent; ++i) x[i] = FromState<T>::call(static_cast<S>(normal(random)));
  if (inplace) std::copy(x, x + extent, out);
  std::unique_ptr<T[]> residual_memory(new T[fused ? extent + shift : 0]);
  T* residual = fused ? residual_memory.get() + shift : nullptr;
  for (int64_t i = 0; fused && i < extent; ++i) residual[i] = FromState<T>::call(static_cast<S>(normal(random)) / 2);
  const auto elements = [&, rows = rows, columns = columns](Kind kind) {
    return kind == kAll ? 1 : kind == kColumn ? columns : kind == kRow ? rows : rows * columns;
  };
  const auto strides = [columns = columns](Kind kind) -> std::vector<int64_t> {
    if (kind == kAll) return {0, 0};
    return {kind == kNeuron ? columns : kind == kRow, kind == kNeuron || kind == kColumn};
  };
  const auto element = [columns = columns](Kind kind, int64_t n) {
    return kind == kAll ? 0 : kind == kColumn ? n % columns : kind == kRow ? n / columns : n;
  };
  std::unique_ptr<S[]> theta(new S[elements(theta_kind)]), init(new S[elements(init_kind)]), v(new S[neurons]),
      shifted(new S[neurons]);
  for (int64_t i = 0; i < elements(theta_kind); ++i) theta[i] = static_cast<S>(0.5f + 0.1f * static_cast<float>(random() % 10));
  for (int64_t i = 0; i < elements(init_kind); ++i) init[i] = static_cast<S>(normal(random));
  std::unique_ptr<int32_t[]> count(new int32_t[neurons]), psi(new int32_t[neurons]);
  std::unique_ptr<S[]> scale(new S[fused ? elements(theta_kind) : 0]), bias(new S[fused ? elements(init_kind) : 0]);
  for (int64_t i = 0; fused && i < elements(theta_kind); ++i) {
    scale[i] = static_cast<S>(0.5f + 0.1f * static_cast<float>(random() % 10));
  }
  for (int64_t i = 0; fused && i < elements(init_kind); ++i) bias[i] = static_cast<S>(normal(random)) / 4;
  constexpr int64_t kSlots = 2;

  const std::vector<int64_t> sizes{rows, columns};
  const std::vector<int> order{0, 1};
  Job job;
  job.dtype = kDType<T>;
  job.neurons = neurons;
  job.steps = steps;
  job.rho = hard ? 0 : rho;
  const bool planned = !hard && emission != Emission::Calibrated;
  job.iterations = planned ? 0 : iterations;
  job.emission = planned ? emission : Emission::Calibrated;
  job.hard_reset = hard;
  job.v_reset = 0.125;
  job.x = inplace ? out : x;
  job.x_layout = make_layout(sizes, {row, stride}, order);
  job.x_time = time;
  job.spikes = out;
  job.spikes_layout = make_layout(sizes, inplace ? std::vector<int64_t>{row, stride} : std::vector<int64_t>{columns, 1}, order);
  job.spikes_time = inplace ? plane : neurons;
  job.theta.data = theta.get();
  job.theta.layout = make_layout(sizes, strides(theta_kind), order);
  job.half_theta_init = init_kind == kAll;
  job.v_init.data = init.get();
  job.v_init.layout = make_layout(sizes, strides(init_kind), order);
  job.result_layout = make_layout(sizes, {columns, 1}, order);
  job.v = planned ? nullptr : v.get();
  job.count = count.get();
  job.v_init_out = shifted.get();
  job.offset = psi.get();
  if (fused) {
    job.scale.data = scale.get();
    job.scale.layout = job.theta.layout;
    job.bias.data = bias.get();
    job.bias.layout = job.v_init.layout;
    job.residual = residual;
    job.residual_layout = job.x_layout;
    job.residual_time = time;
  }
  const int64_t sums = tally_size(job.rho);
  std::unique_ptr<int64_t[]> tally(new int64_t[kSlots * sums]()), expected_tally(new int64_t[sums]());
  if (job.rho) {
    job.tally = tally.get();
    job.slots = kSlots;
  }
  ++(packed(job) ? packed_cases : other_cases);
  run_kernel(job);

  for (int64_t n = 0; n < neurons; ++n) {
    const int64_t at = n / columns * row + n % columns * stride;
    const S th = theta[element(theta_kind, n)];
    OneNeuron<T> in;
    for (int64_t t = 0; t < steps; ++t) {
      T current = x[at + t * time];
      if (fused) current = affine(current, scale[element(theta_kind, n)], bias[element(init_kind, n)]);
      if (fused) current = with_residual(current, residual[at + t * time]);
      in.x.push_back(to_state(current));
    }
    const Uniform<S, 1> parameter{th};
    S start[1] = {init_kind == kAll ? th / 2 : init[element(init_kind, n)]};
    int32_t expected_psi[1] = {0}, expected_count[1] = {0};
    if (job.rho) {
      calibrate(
          start, expected_psi, expected_count, parameter, rho, job.iterations,
          [&](Watch<S, 1>& w, const S(&from)[1], int32_t) { watch(w, from, parameter, rho, in); },
          [&](const Watch<S, 1>& w, const S(&from)[1]) {
            const ErrorSplit error =
                error_split(w.v[0], from[0], th, expected_count[0], expected_psi[0], static_cast<int32_t>(rho));
            expected_tally[2 * rho + 1 + kTallyClipping] += error.clipping;
            expected_tally[2 * rho + 1 + kTallyQuantisation] += error.quantisation;
            expected_tally[2 * rho + 1 + kTallyUnbounded] += error.unbounded;
          });
      ++expected_tally[rho + expected_psi[0]];
      check(same(shifted[n], start[0]), "v_init", n, neurons);
      check(psi[n] == expected_psi[0], "offset spikes", n, neurons);
    }
    const int32_t expected_desired = expected_count[0] + expected_psi[0];
    std::vector<bool> fired(steps);
    OneOutput<T> sink{fired};
    hard ? emit<true>(start, expected_count, parameter, HardReset<S>{S(0.125)}, steps, in, sink)
         : emit<true>(start, expected_count, parameter, SoftReset{}, steps, in, sink);
    if (planned) {
      expected_count[0] = 0;
      for (int64_t t = 0; t < steps; ++t) {
        const auto by = [&](int64_t at) { return (2 * expected_desired * at + rho) / (2 * rho); };
        fired[t] = emission == Emission::Even ? by(t + 1) > by(t) : t % rho < expected_desired;
        expected_count[0] += fired[t];
      }
    }
    // Inputs of 16 bits lie on a grid, where m(t) = θ happens and rounding decides it.
    if (job.rho && job.iterations < 0 && sizeof(T) > 2) {
      const int64_t emitted = std::count(fired.begin(), fired.begin() + rho, true);
      check(emitted == expected_desired, "exact calibration leaves no offset spike", n, emitted);
    }
    check(count[n] == expected_count[0], "count", n, neurons);
    if (job.rho) {
      int64_t* const emitted = expected_tally.get() + 2 * rho + 1;
      emitted[kTallySpikes] += expected_count[0];
      emitted[kTallySilent] += expected_count[0] == 0;
      emitted[kTallySaturated] += expected_count[0] == steps;
    }
    check(planned || same(v[n], start[0]), "v", n, neurons);
    const T one = FromState<T>::call(th);
    for (int64_t t = 0; t < steps; ++t) {
      check(same(out[inplace ? at + t * plane : t * neurons + n], fired[t] ? one : T{}), "spike", n, t);
    }
  }
  for (int64_t i = 0; job.rho && i < sums; ++i) {
    int64_t sum = 0;
    for (int64_t slot = 0; slot < kSlots; ++slot) sum += tally[slot * sums + i];
    check(sum == expected_tally[i], "statistics", i, sum - expected_tally[i]);
  }
}

// Spikes pooled on the way out, against the same job without pooling and the means of its spikes.
template <class T>
void pooled_case(std::mt19937& random, int64_t outer, int64_t height, int64_t width, int64_t inner, int64_t rows, int64_t columns,
                 int64_t rho) {
  using S = state_t<T>;
  const int64_t steps = 5, neurons = outer * height * width * inner, pooled = neurons / (rows * columns);
  std::normal_distribution<float> normal(0.35f, 1.2f);
  std::unique_ptr<T[]> x(new T[steps * neurons]), residual(new T[neurons]), spikes(new T[steps * neurons]),
      out(new T[steps * pooled]);
  std::unique_ptr<S[]> bias(new S[inner]), theta(new S[neurons]);
  for (int64_t i = 0; i < steps * neurons; ++i) x[i] = FromState<T>::call(static_cast<S>(normal(random)));
  for (int64_t i = 0; i < neurons; ++i) residual[i] = FromState<T>::call(static_cast<S>(normal(random)));
  for (int64_t i = 0; i < neurons; ++i) theta[i] = static_cast<S>(0.5f + 0.125f * static_cast<float>(random() % 8));
  for (int64_t i = 0; i < inner; ++i) bias[i] = static_cast<S>(normal(random)) / 4;
  const std::vector<int64_t> sizes{outer, height, width, inner}, whole{height * width * inner, width * inner, inner, 1};
  Job job;
  job.dtype = kDType<T>;
  job.neurons = neurons;
  job.steps = steps;
  job.rho = rho;
  job.iterations = -1;
  job.x = x.get();
  job.x_layout = job.residual_layout = job.theta.layout = make_layout(sizes, whole, {0, 1, 2, 3});
  job.x_time = job.spikes_time = neurons;
  job.residual = residual.get();  // the same at every step
  job.theta.data = theta.get();
  job.bias.data = bias.get();
  job.bias.layout = make_layout(sizes, {0, 0, 0, 1}, {0, 1, 2, 3});
  job.spikes = spikes.get();
  job.spikes_layout = job.x_layout;
  run_kernel(job);
  job.pool = {rows, columns, height, width, inner};
  job.spikes = out.get();
  job.spikes_time = pooled;
  run_kernel(job);
  const int64_t across = width / columns;
  for (int64_t i = 0; i < steps * pooled; ++i) {
    const int64_t channel = i % inner, column = i / inner % across, line = i / inner / across;
    S sum = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < columns; ++k) {
        sum += to_state(spikes[((line * rows + r) * width + column * columns + k) * inner + channel]);
      }
    }
    check(same(out[i], FromState<T>::call(sum / static_cast<S>(rows * columns))), "pooled spikes", i, neurons);
  }
}

template <class T>
void sweep() {
  std::mt19937 random(7);
  const int64_t shapes[][2] = {{1, 1},   {1, 2},   {1, 3},   {1, 7},   {1, 31}, {3, 33},   {1, 64},
                               {1, 127}, {1, 129}, {1, 512}, {5, 103}, {2, 24}, {1, 1537}, {1, 4097}};
  const int64_t memory[][3] = {{1, 3, 0}, {1, 0, 0}, {1, 0, 1}, {2, 3, 0}};  // stride, gap, shift
  for (const auto& shape : shapes) {
    for (const auto& place : memory) {
      const auto run = [&](int64_t steps, int64_t rho, int64_t iterations, Kind theta_kind, bool hard, bool inplace,
                           bool is_static) {
        kernel_case<T>(random, {shape[0], shape[1], place[0], place[1], place[2], steps, rho, iterations, theta_kind, hard,
                                inplace, is_static});
      };
      for (const Kind theta_kind : {kAll, kColumn, kNeuron}) {
        for (const int64_t iterations : {1, -1}) {
          run(3, 2, iterations, theta_kind, false, true, false);
          run(9, 6, iterations, theta_kind, false, false, false);
          run(16, 16, iterations, theta_kind, false, false, false);
          run(19, 17, iterations, theta_kind, false, true, false);
        }
        run(5, 4, 2, theta_kind, false, false, true);
        run(11, 0, 0, theta_kind, true, true, false);
        run(1, 1, 0, theta_kind, false, false, false);
      }
    }
  }
  for (int i = 0; i < 300; ++i) {  // any combination, mostly of shapes that packs of 4 or 8 neurons can serve
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
    const int64_t unit = below(4) ? 8 : 1, steps = 1 + below(36);
    Case c{1 + below(4),
           unit * (1 + below(20)),
           below(4) ? 1 : 2,
           unit * below(2),
           unit * below(2),
           steps,
           1 + below(steps),
           below(4) - 1,
           static_cast<Kind>(below(kKinds)),
           below(4) == 0,
           below(2) == 0,
           below(4) == 0,
           static_cast<Kind>(below(kKinds)),
           static_cast<Emission>(below(3)),
           below(2) == 0};
    if (c.is_static) c.inplace = false;
    kernel_case<T>(random, c);
  }
  for (const int64_t rho : {0, 3, 5}) {
    for (const int64_t inner : {1, 3, 70}) {
      pooled_case<T>(random, 3, 4, 6, inner, 2, 2, rho);
      pooled_case<T>(random, 1, 26, 30, inner > 3 ? 5 : inner, 2, 2, rho);
      if (!pools_any_window()) continue;
      pooled_case<T>(random, 2, 6, 9, inner, 2, 3, rho);
      pooled_case<T>(random, 5, 7, 7, inner, 7, 7, rho);
    }
  }
}

}  // namespace

void kernels() {
  sweep<float>();
  sweep<double>();
  sweep<Half>();
  sweep<BFloat16>();
  check(packed_cases > 100 && other_cases > 100, "both paths were taken", packed_cases, other_cases);
}

}  // namespace cos_ext::test
