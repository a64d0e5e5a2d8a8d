// The C++ tests, run plain and under sanitizers: storage conversions, exact offset spikes, and the kernels against a plain loop
// over single neurons, with every buffer exactly as large as it must be. Compiled twice: for the CPU kernels of the chosen
// instruction set, and with COS_TEST_CUDA for the bodies of the CUDA kernels, run on the host by cuda_shim.h.
#ifdef COS_TEST_CUDA
#include "cuda_shim.h"
#endif

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/calibration.h"
#include "core/current.h"
#include "core/dtypes.h"
#include "core/statistics.h"
#include "cpu/kernels.h"
#ifdef COS_TEST_CUDA
#include "cuda/kernels.cuh"
#endif

using namespace cos_ext;

namespace {

int failures = 0;
void check(bool ok, const char* what, long long a = 0, long long b = 0) {
  if (!ok && ++failures <= 20) std::printf("FAILED: %s (%lld, %lld)\n", what, a, b);
}

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

template <class T>
DType dtype_of();
template <>
DType dtype_of<float>() { return DType::Float32; }
template <>
DType dtype_of<double>() { return DType::Float64; }
template <>
DType dtype_of<Half>() { return DType::Float16; }
template <>
DType dtype_of<BFloat16>() { return DType::BFloat16; }

#ifdef COS_TEST_CUDA
const char* tested() { return "CUDA kernels on the host"; }
void run_kernel(const Job& job) {
  static int64_t calls = 0;
  cuda::launch(job, 0, ++calls % 2 ? 0 : INT64_MAX);  // streaming stores and plain ones
}
template <class T>
bool packed(const Job& job) {
  cuda::Task task;
  return cuda::make_task(task, job, 16 / sizeof(T), sizeof(T), sizeof(state_t<T>));
}
#else
const char* tested() { return cpu::capability(); }
void run_kernel(const Job& job) {
  // Split in two, as threads would.
  const int64_t piece = cpu::piece(job), middle = job.neurons / 2 / piece * piece;
  cpu::kernel()(job, 0, middle);
  cpu::kernel()(job, middle, job.neurons);
}
template <class T>
bool packed(const Job& job) {
  return job.x_layout.dense() && job.spikes_layout.dense();
}
#endif
int packed_cases = 0, other_cases = 0;

template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

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
  const auto [rows, columns, stride, gap, shift, steps, rho, iterations, theta_kind, hard, inplace, is_static, init_kind, emission, fused] = c;
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
  std::unique_ptr<S[]> theta(new S[elements(theta_kind)]), init(new S[elements(init_kind)]), v(new S[neurons]), shifted(new S[neurons]);
  for (int64_t i = 0; i < elements(theta_kind); ++i) theta[i] = static_cast<S>(0.5f + 0.1f * static_cast<float>(random() % 10));
  for (int64_t i = 0; i < elements(init_kind); ++i) init[i] = static_cast<S>(normal(random));
  std::unique_ptr<int32_t[]> count(new int32_t[neurons]), psi(new int32_t[neurons]);
  std::unique_ptr<S[]> scale(new S[fused ? elements(theta_kind) : 0]), bias(new S[fused ? elements(init_kind) : 0]);
  for (int64_t i = 0; fused && i < elements(theta_kind); ++i) scale[i] = static_cast<S>(0.5f + 0.1f * static_cast<float>(random() % 10));
  for (int64_t i = 0; fused && i < elements(init_kind); ++i) bias[i] = static_cast<S>(normal(random)) / 4;
  constexpr int64_t kSlots = 2;

  const std::vector<int64_t> sizes{rows, columns};
  const std::vector<int> order{0, 1};
  Job job;
  job.dtype = dtype_of<T>();
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
  ++(packed<T>(job) ? packed_cases : other_cases);
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
      calibrate(start, expected_psi, expected_count, parameter, rho, job.iterations,
                [&](Watch<S, 1>& w, const S(&from)[1], int32_t) { watch(w, from, parameter, rho, in); },
                [&](const Watch<S, 1>& w, const S(&from)[1]) {
                  int64_t clipping, quantisation;
                  error_split(w.v[0], from[0], th, expected_count[0], expected_psi[0], static_cast<int32_t>(rho), clipping,
                              quantisation);
                  expected_tally[2 * rho + 1 + kTallyClipping] += clipping;
                  expected_tally[2 * rho + 1 + kTallyQuantisation] += quantisation;
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
  std::unique_ptr<T[]> x(new T[steps * neurons]), residual(new T[neurons]), spikes(new T[steps * neurons]), out(new T[steps * pooled]);
  std::unique_ptr<S[]> bias(new S[inner]), theta(new S[neurons]);
  for (int64_t i = 0; i < steps * neurons; ++i) x[i] = FromState<T>::call(static_cast<S>(normal(random)));
  for (int64_t i = 0; i < neurons; ++i) residual[i] = FromState<T>::call(static_cast<S>(normal(random)));
  for (int64_t i = 0; i < neurons; ++i) theta[i] = static_cast<S>(0.5f + 0.125f * static_cast<float>(random() % 8));
  for (int64_t i = 0; i < inner; ++i) bias[i] = static_cast<S>(normal(random)) / 4;
  const std::vector<int64_t> sizes{outer, height, width, inner}, whole{height * width * inner, width * inner, inner, 1};
  Job job;
  job.dtype = dtype_of<T>();
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
void kernels() {
  std::mt19937 random(7);
  const int64_t shapes[][2] = {{1, 1}, {1, 2}, {1, 3}, {1, 7}, {1, 31}, {3, 33}, {1, 64}, {1, 127}, {1, 129}, {1, 512}, {5, 103},
                               {2, 24}, {1, 1537}, {1, 4097}};
  const int64_t memory[][3] = {{1, 3, 0}, {1, 0, 0}, {1, 0, 1}, {2, 3, 0}};  // stride, gap, shift
  for (const auto& shape : shapes) {
    for (const auto& place : memory) {
      const auto run = [&](int64_t steps, int64_t rho, int64_t iterations, Kind theta_kind, bool hard, bool inplace, bool is_static) {
        kernel_case<T>(random, {shape[0], shape[1], place[0], place[1], place[2], steps, rho, iterations, theta_kind, hard, inplace, is_static});
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
    Case c{1 + below(4), unit * (1 + below(20)), below(4) ? 1 : 2, unit * below(2), unit * below(2), steps, 1 + below(steps),
           below(4) - 1, static_cast<Kind>(below(kKinds)), below(4) == 0, below(2) == 0, below(4) == 0, static_cast<Kind>(below(kKinds)),
           static_cast<Emission>(below(3)), below(2) == 0};
    if (c.is_static) c.inplace = false;
    kernel_case<T>(random, c);
  }
  for (const int64_t rho : {0, 3, 5}) {
    for (const int64_t inner : {1, 3, 70}) {
      pooled_case<T>(random, 3, 4, 6, inner, 2, 2, rho);
      pooled_case<T>(random, 1, 26, 30, inner > 3 ? 5 : inner, 2, 2, rho);
#ifndef COS_TEST_CUDA
      pooled_case<T>(random, 2, 6, 9, inner, 2, 3, rho);
      pooled_case<T>(random, 5, 7, 7, inner, 7, 7, rho);
#endif
    }
  }
}

// The arrays of an uncompressed .npz (numpy.savez), by name, as their bytes; the shape is not needed.
std::map<std::string, std::vector<char>> read_npz(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto number = [&](size_t at, int bytes) {
    uint64_t value = 0;
    std::memcpy(&value, all.data() + at, bytes);
    return value;
  };
  std::map<std::string, std::vector<char>> arrays;
  for (size_t at = 0; at + 30 < all.size() && number(at, 4) == 0x04034b50;) {
    const size_t name = number(at + 26, 2), npy = at + 30 + name + number(at + 28, 2);
    const size_t data = npy + 10 + number(npy + 8, 2);
    const std::string header = all.substr(npy + 10, data - npy - 10);
    size_t elements = 1, digit = header.find('(');
    while (header[digit] != ')') {
      digit = header.find_first_of("0123456789)", digit);
      if (header[digit] != ')') elements *= std::stoul(header.substr(digit), nullptr);
      digit = header.find_first_of(",)", digit);
    }
    const size_t bytes = elements * (header.find("<f8") != std::string::npos ? 8 : 4);
    arrays[all.substr(at + 30, name - 4)].assign(all.begin() + data, all.begin() + data + bytes);
    at = data + bytes;
  }
  return arrays;
}

// The authors' spikes, EQUAL but where T > rho and a neuron fired at each of the first rho steps with r >= θ (test_golden.py).
void golden_vectors(const char* path) {
  auto arrays = read_npz(path);
  int cases = 0, spikes = 0;
  for (; arrays.count("meta" + std::to_string(cases)); ++cases) {
    const std::string number = std::to_string(cases);
    const double* meta = reinterpret_cast<const double*>(arrays["meta" + number].data());
    const int64_t steps = static_cast<int64_t>(meta[0]), rho = static_cast<int64_t>(meta[1]);
    const float theta = static_cast<float>(meta[2]);
    const auto floats = [&](const std::string& name) {
      const std::vector<char>& bytes = arrays[name];
      std::vector<float> values(bytes.size() / sizeof(float));
      std::memcpy(values.data(), bytes.data(), bytes.size());
      return values;
    };
    const std::vector<float> x = floats("x" + number), y = floats("y" + number);
    std::vector<float> out(x.size());
    Job job;
    job.neurons = static_cast<int64_t>(x.size()) / steps;
    job.steps = steps;
    job.rho = rho;
    job.iterations = 1;
    job.x = x.data();
    job.spikes = out.data();
    job.x_time = job.spikes_time = job.neurons;
    job.x_layout = job.spikes_layout = make_layout({job.neurons}, {1}, {0});
    job.theta.value = theta;
    run_kernel(job);
    for (int64_t n = 0; n < job.neurons; ++n) {
      float v = theta / 2;
      int64_t count = 0;
      for (int64_t t = 0; t < rho; ++t) {
        v += x[t * job.neurons + n];
        const bool fired = v >= theta;
        v = fired ? v - theta : v;
        count += fired;
      }
      if (steps > rho && count == rho && v >= theta) continue;
      for (int64_t t = 0; t < steps; ++t) {
        const int64_t at = t * job.neurons + n;
        check((out[at] > 0) == (y[at] > 0) && (out[at] == 0 || out[at] == theta), "golden spike", cases, at);
        spikes += out[at] > 0;
      }
    }
  }
  check(cases == 6 && spikes > 100, "golden cases were read", cases, spikes);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::printf("usage: %s cos_reference_public.npz\n", argv[0]);
    return EXIT_FAILURE;
  }
  std::printf("%s\n", tested());
  golden_vectors(argv[1]);
  half_conversions();
  exact_offset_spikes();
  kernels<float>();
  kernels<double>();
  kernels<Half>();
  kernels<BFloat16>();
  check(packed_cases > 100 && other_cases > 100, "both paths were taken", packed_cases, other_cases);
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
