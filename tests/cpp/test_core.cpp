// The C++ tests, run plain and under sanitizers: storage conversions, exact offset spikes, and the kernels against a plain loop
// over single neurons, with every buffer exactly as large as it must be. Compiled twice: for the CPU kernels of the chosen
// instruction set, and with COS_TEST_CUDA for the bodies of the CUDA kernels, run on the host by cuda_shim.h.
#ifdef COS_TEST_CUDA
#include "cuda_shim.h"
#endif

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "core/calibration.h"
#include "core/dtypes.h"
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
void run_kernel(const Job& job) { cuda::launch(job, 0); }
template <class T>
bool packed(const Job& job) {
  return cuda::packable<T>(job);
}
#else
const char* tested() { return cpu::capability(); }
void run_kernel(const Job& job) {
  // Split in two, as threads would.
  const int64_t middle = job.neurons / 2 / cpu::kBlock * cpu::kBlock;
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
  Value load(int64_t t) const { return {x[t]}; }
  Value held(int64_t t) const { return load(t); }
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

// neurons in `rows` rows of `columns`, the column stride as given, `gap` elements between rows, `shift` before the first.
template <class T>
void kernel_case(std::mt19937& random, int64_t rows, int64_t columns, int64_t stride, int64_t steps, int64_t rho, int64_t iterations,
                 int theta_kind, bool hard, bool inplace, bool is_static, int64_t gap, int64_t shift) {
  using S = state_t<T>;
  const int64_t neurons = rows * columns, row = columns * stride + gap, plane = rows * row;
  const int64_t time = is_static ? 0 : plane;
  const int64_t extent = (is_static ? 0 : (steps - 1) * plane) + (rows - 1) * row + (columns - 1) * stride + 1;
  std::normal_distribution<float> normal(0.35f, 1.2f);
  std::unique_ptr<T[]> x_memory(new T[extent + shift]), out_memory(new T[(inplace ? extent : steps * neurons) + shift]);
  T *x = x_memory.get() + shift, *out = out_memory.get() + shift;
  for (int64_t i = 0; i < extent; ++i) x[i] = FromState<T>::call(static_cast<S>(normal(random)));
  if (inplace) std::copy(x, x + extent, out);
  const int64_t thetas = theta_kind == 0 ? 1 : theta_kind == 1 ? columns : neurons;
  std::unique_ptr<S[]> theta(new S[thetas]), v(new S[neurons]), shifted(new S[neurons]);
  for (int64_t i = 0; i < thetas; ++i) theta[i] = static_cast<S>(0.5f + 0.1f * static_cast<float>(random() % 10));
  std::unique_ptr<int32_t[]> count(new int32_t[neurons]), psi(new int32_t[neurons]);

  const std::vector<int64_t> sizes{rows, columns};
  const std::vector<int> order{0, 1};
  Job job;
  job.dtype = dtype_of<T>();
  job.neurons = neurons;
  job.steps = steps;
  job.rho = hard ? 0 : rho;
  job.iterations = iterations;
  job.hard_reset = hard;
  job.v_reset = 0.125;
  job.x = inplace ? out : x;
  job.x_layout = make_layout(sizes, {row, stride}, order);
  job.x_time = time;
  job.spikes = out;
  job.spikes_layout = make_layout(sizes, inplace ? std::vector<int64_t>{row, stride} : std::vector<int64_t>{columns, 1}, order);
  job.spikes_time = inplace ? plane : neurons;
  job.theta.data = theta.get();
  job.theta.layout = make_layout(sizes, theta_kind == 0 ? std::vector<int64_t>{0, 0} : theta_kind == 1 ? std::vector<int64_t>{0, 1} : std::vector<int64_t>{columns, 1}, order);
  job.result_layout = make_layout(sizes, {columns, 1}, order);
  job.v = v.get();
  job.count = count.get();
  job.v_init_out = shifted.get();
  job.offset = psi.get();
  ++(packed<T>(job) ? packed_cases : other_cases);
  run_kernel(job);

  for (int64_t n = 0; n < neurons; ++n) {
    const int64_t at = n / columns * row + n % columns * stride;
    const S th = theta[theta_kind == 0 ? 0 : theta_kind == 1 ? n % columns : n];
    OneNeuron<T> in;
    for (int64_t t = 0; t < steps; ++t) in.x.push_back(to_state(x[at + t * time]));
    const Uniform<S, 1> parameter{th};
    S start[1] = {th / 2};
    int32_t expected_psi[1] = {0}, expected_count[1] = {0};
    if (job.rho) {
      calibrate(start, expected_psi, expected_count, parameter, rho, iterations,
                [&](Watch<S, 1>& w, const S(&from)[1], int32_t) { watch<0>(w, from, parameter, rho, in); });
      check(same(shifted[n], start[0]), "v_init", n, neurons);
      check(psi[n] == expected_psi[0], "offset spikes", n, neurons);
    }
    std::vector<bool> fired(steps);
    OneOutput<T> sink{fired};
    hard ? emit<true, 0>(start, expected_count, parameter, HardReset<S>{S(0.125)}, steps, in, sink)
         : emit<true, 0>(start, expected_count, parameter, SoftReset{}, steps, in, sink);
    check(count[n] == expected_count[0], "count", n, neurons);
    check(same(v[n], start[0]), "v", n, neurons);
    const T one = FromState<T>::call(th);
    for (int64_t t = 0; t < steps; ++t) {
      check(same(out[inplace ? at + t * plane : t * neurons + n], fired[t] ? one : T{}), "spike", n, t);
    }
  }
}

template <class T>
void kernels() {
  std::mt19937 random(7);
  const int64_t shapes[][2] = {{1, 1}, {1, 3}, {1, 7}, {3, 33}, {1, 64}, {1, 127}, {1, 129}, {1, 512}, {5, 103}, {1, 1537}};
  const int64_t memory[][3] = {{1, 3, 0}, {1, 0, 0}, {1, 0, 1}, {2, 3, 0}};  // stride, gap, shift
  for (const auto& shape : shapes) {
    for (const auto& place : memory) {
      const auto run = [&](int64_t steps, int64_t rho, int64_t iterations, int theta_kind, bool hard, bool inplace, bool is_static) {
        kernel_case<T>(random, shape[0], shape[1], place[0], steps, rho, iterations, theta_kind, hard, inplace, is_static, place[1], place[2]);
      };
      for (const int theta_kind : {0, 1, 2}) {
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
}

}  // namespace

int main() {
  std::printf("%s\n", tested());
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
