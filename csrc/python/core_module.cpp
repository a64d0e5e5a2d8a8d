// cos_ext._core: the arithmetic core over NumPy arrays, and the build facts. Knows nothing of torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <variant>
#include <vector>

#include "../core/dtypes.h"
#include "../cpu/kernels.h"
#include "../general_rule.h"

namespace py = pybind11;
using namespace cos_ext;

namespace {

using Value = std::variant<double, py::array>;

std::vector<int64_t> shape_of(const py::array& array, int from = 0) {
  return std::vector<int64_t>(array.shape() + from, array.shape() + array.ndim());
}

std::vector<int64_t> strides_of(const py::array& array, int from = 0) {
  std::vector<int64_t> strides;
  for (py::ssize_t d = from; d < array.ndim(); ++d) strides.push_back(array.strides(d) / array.itemsize());
  return strides;
}

std::string describe(const py::array& array) {
  return std::string(py::str(array.dtype())) + " " + std::string(py::str(py::tuple(array.attr("shape"))));
}

// Threads that are waited for, whatever happens: one that is not would end the process.
struct Joined {
  std::vector<std::thread> threads;
  ~Joined() {
    for (auto& thread : threads) thread.join();
  }
};

// Holds the converted arrays of one call, and fills the job that the kernels see.
class Call {
 public:
  explicit Call(const py::array& x) : x_(x) {
    const char kind = x.dtype().kind();
    const auto size = x.itemsize();
    if (kind != 'f' || (size != 2 && size != 4 && size != 8) || x.ndim() < 1 || x.shape(0) < 1 || x.shape(0) > (1 << 24)) {
      throw py::value_error("x_seq must be float16, float32 or float64 [T, *neurons] with 1 <= T <= 2**24, got " + describe(x));
    }
    if (!x.dtype().attr("isnative").cast<bool>()) throw py::value_error("x_seq must have this machine's byte order");
    for (py::ssize_t d = 0; d < x.ndim(); ++d) {
      if (x.strides(d) % size != 0 || x.strides(d) < 0) {
        throw py::value_error("x_seq must have non-negative strides of whole elements");
      }
    }
    job.dtype = size == 2 ? DType::Float16 : size == 4 ? DType::Float32 : DType::Float64;
    state_ = py::dtype(size == 8 ? "float64" : "float32");
    sizes_ = shape_of(x, 1);
    order_ = walk_order(sizes_, strides_of(x, 1));
    job.neurons = 1;
    for (int64_t s : sizes_) job.neurons *= s;
    job.x = x.data();
    job.x_layout = make_layout(sizes_, strides_of(x, 1), order_);
    job.x_time = x.shape(0) > 1 ? x.strides(0) / size : 0;
  }

  void threshold(const Value& value) {
    parameter("v_threshold", job.theta, theta_, value);
    if (theta_.size() == 0 && !std::holds_alternative<double>(value)) return;
    double low = job.theta.value, high = low;
    if (!std::holds_alternative<double>(value)) {
      low = theta_.attr("min")().cast<double>();  // NaN where any is
      high = theta_.attr("max")().cast<double>();
    }
    if (!storable(low) || !storable(high)) {
      throw py::value_error("v_threshold must be positive and finite in x_seq's dtype, got values in [" + std::to_string(low) +
                            ", " + std::to_string(high) + "]");
    }
  }
  void v_init(const std::optional<Value>& value) {
    job.half_theta_init = !value;
    if (value) parameter("v_init", job.v_init, v_init_, *value);
  }
  void calibration(int64_t rho, std::optional<int64_t> iterations) {
    if (rho < 1 || rho > x_.shape(0)) {
      throw py::value_error("rho must lie in 1..T = " + std::to_string(x_.shape(0)) + ", got " + std::to_string(rho));
    }
    if (iterations && *iterations < 0) {
      throw py::value_error("iterations must be >= 0 or None, got " + std::to_string(*iterations));
    }
    job.rho = rho;
    job.iterations = iterations.value_or(-1);
  }

  void emission(const std::string& name, bool block = false) {
    const std::vector<std::string> names{"calibrated", "even", "front", "block"};
    const auto found = std::find(names.begin(), block ? names.end() : names.end() - 1, name);
    if (found == (block ? names.end() : names.end() - 1)) {
      throw py::value_error(std::string("emission must be 'calibrated', 'even'") +
                            (block ? ", 'front' or 'block'" : " or 'front'") + ", got '" + name + "'");
    }
    job.emission = static_cast<Emission>(found - names.begin());
    if (job.emission != Emission::Calibrated) job.iterations = 0;
  }
  void hard_reset(std::optional<double> v_reset) {
    if (v_reset && std::isnan(*v_reset)) throw py::value_error("v_reset must not be NaN");
    job.hard_reset = v_reset.has_value();
    job.v_reset = v_reset.value_or(0);
  }

  // Makes general neurons of them. Must come after calibration() and emission().
  void general(const General& of, const std::optional<Value>& emitted, const std::optional<py::array>& step_bias,
               const std::optional<std::vector<double>>& step_scale) {
    const int64_t steps = x_.shape(0);
    const char* fault = fault_of(of, std::max(steps, job.rho), emitted.has_value(), step_scale.has_value());
    if (!fault) fault = calibration_fault(of, job.rho, job.emission, job.hard_reset, step_scale.has_value(), false);
    if (!fault && of.prediction && job.hard_reset) fault = "prediction needs soft reset, no v_reset";
    if (fault) throw py::value_error(fault);
    job.general = of;
    job.general.on = true;
    if (emitted) {
      const double* number = std::get_if<double>(&*emitted);
      if (number && !std::isfinite(*number)) throw py::value_error("emitted must be finite");
      parameter("emitted", job.general.emitted, emitted_, number ? Value(py::array(py::float_(*number))) : *emitted);
    }
    if (step_bias) bias(*step_bias);
    if (step_scale) {
      scales_ = *step_scale;
      const auto positive = [](double scale) { return scale > 0 && scale < INFINITY; };
      if (static_cast<int64_t>(scales_.size()) != steps || !std::all_of(scales_.begin(), scales_.end(), positive)) {
        throw py::value_error("step_scale must be a positive number for each of the " + std::to_string(steps) + " steps");
      }
      job.general.scales = scales_.data();
    }
  }

  py::array spikes() {
    std::vector<py::ssize_t> shape(x_.shape(), x_.shape() + x_.ndim());
    spikes_ = py::array(x_.dtype(), shape);
    job.steps = x_.shape(0);
    job.spikes = spikes_.mutable_data();
    job.spikes_layout = make_layout(sizes_, strides_of(spikes_, 1), order_);
    job.spikes_time = spikes_.strides(0) / spikes_.itemsize();
    return spikes_;
  }
  py::array counts(int32_t*& target) {
    py::array made = result(py::dtype("int32"));
    target = static_cast<int32_t*>(made.mutable_data());
    return made;
  }
  py::array potentials(void*& target) {
    py::array made = result(state_);
    target = made.mutable_data();
    return made;
  }

  void run(int threads) {
    if (threads < 1) throw py::value_error("threads must be >= 1, got " + std::to_string(threads));
    if (job.neurons == 0) return;
    py::gil_scoped_release release;
    const cpu::Kernel kernel = cpu::kernel();
    const int64_t blocks = (job.neurons + cpu::kBlock - 1) / cpu::kBlock;
    const int64_t most = std::max(1u, std::thread::hardware_concurrency());  // 0: unknown
    const int64_t parts = std::min<int64_t>(threads, most);
    const int64_t each = (blocks + parts - 1) / parts;
    const auto part = [&](int64_t first) {
      const int64_t last = std::min(first + each, blocks);
      kernel(job, first * cpu::kBlock, std::min(last * cpu::kBlock, job.neurons));
    };
    Joined others;
    int64_t first = each;
    try {
      for (; first < blocks; first += each) others.threads.emplace_back(part, first);
    } catch (const std::system_error&) {
      for (; first < blocks; first += each) part(first);  // the system gives no more threads
    }
    part(0);
  }

  Job job;

 private:
  bool storable(double theta) const {
    switch (job.dtype) {
      case DType::Float64: return storable_threshold<double>(theta);
      case DType::Float16: return storable_threshold<Half>(theta);
      default: return storable_threshold<float>(theta);
    }
  }

  py::array result(const py::dtype& dtype) {
    py::array made(dtype, std::vector<py::ssize_t>(sizes_.begin(), sizes_.end()));
    job.result_layout = make_layout(sizes_, strides_of(made), order_);
    return made;
  }

  void parameter(const char* name, Parameter& parameter, py::array& held, const Value& value) {
    if (const double* number = std::get_if<double>(&value)) {
      if (std::isnan(*number)) throw py::value_error(std::string(name) + " must not be NaN");
      parameter.value = *number;
      return;
    }
    const py::array given = std::get<py::array>(value);
    if (given.dtype().kind() != 'f') throw py::type_error(std::string(name) + " must be floating-point, got " + describe(given));
    held = given.attr("astype")(state_, py::arg("order") = "C", py::arg("copy") = false);
    const size_t own = static_cast<size_t>(held.ndim());
    std::vector<int64_t> strides(sizes_.size(), 0);
    bool fits = own <= sizes_.size();
    for (size_t d = 0; fits && d < own; ++d) {
      const size_t at = sizes_.size() - own + d;
      fits = held.shape(d) == sizes_[at] || held.shape(d) == 1;
      strides[at] = held.shape(d) == 1 ? 0 : held.strides(d) / held.itemsize();
    }
    if (!fits) throw py::value_error(std::string(name) + " does not broadcast to the neurons, got " + describe(held));
    parameter.data = held.data();
    parameter.layout = make_layout(sizes_, strides, order_);
    if (parameter.layout.ndim == 1 && parameter.layout.stride[0] == 0) parameter.layout.ndim = 0;
  }

  // b [T], or [T, C] with the channels of neurons [B, C, ...].
  void bias(const py::array& given) {
    const bool fits = (given.ndim() == 1 || given.ndim() == 2) && given.shape(0) == x_.shape(0);
    if (!fits) throw py::value_error("step_bias must be [T] or [T, C], got " + describe(given));
    if (given.dtype().kind() != 'f') throw py::type_error("step_bias must be floating-point, got " + describe(given));
    biases_ = given.attr("astype")(state_, py::arg("order") = "C", py::arg("copy") = false);
    std::vector<py::ssize_t> shape = {biases_.shape(0)};
    if (given.ndim() == 2) {
      shape.push_back(biases_.shape(1));
      shape.resize(std::max<size_t>(2, sizes_.size()), 1);
    }
    biases_ = biases_.attr("reshape")(shape);
    parameter("step_bias", job.general.bias, bias_, biases_[py::int_(0)]);
    job.general.bias_time = biases_.shape(0) > 1 ? biases_.strides(0) / biases_.itemsize() : 0;
  }

  py::array x_, theta_, v_init_, spikes_, emitted_, biases_, bias_;
  std::vector<double> scales_;
  py::dtype state_;
  std::vector<int64_t> sizes_;
  std::vector<int> order_;
};

py::tuple if_forward(const py::array& x, const Value& theta, const std::optional<Value>& v_init, std::optional<double> v_reset,
                     int threads) {
  Call call(x);
  call.threshold(theta);
  call.v_init(v_init);
  call.hard_reset(v_reset);
  py::array spikes = call.spikes(), v = call.potentials(call.job.v), count = call.counts(call.job.count);
  call.run(threads);
  return py::make_tuple(spikes, v, count);
}

py::tuple cos_forward(const py::array& x, const Value& theta, const std::optional<Value>& v_init, int64_t rho,
                      std::optional<int64_t> iterations, const std::string& emission, int threads) {
  Call call(x);
  call.threshold(theta);
  call.v_init(v_init);
  call.calibration(rho, iterations);
  call.emission(emission);
  py::array spikes = call.spikes(), count = call.counts(call.job.count);
  py::object v = emission == "calibrated" ? py::object(call.potentials(call.job.v)) : py::none();
  py::array shifted = call.potentials(call.job.v_init_out), offset = call.counts(call.job.offset);
  call.run(threads);
  return py::make_tuple(spikes, v, count, shifted, offset);
}

using Bound = std::optional<int64_t>;

py::tuple neuron_forward(const py::array& x, const Value& theta, const std::optional<Value>& v_init,
                         std::pair<int64_t, int64_t> levels, double upper, std::optional<double> lower, bool strict,
                         std::pair<Bound, Bound> count, const std::optional<Value>& emitted, double leak,
                         const std::optional<py::array>& step_bias, const std::optional<std::vector<double>>& step_scale,
                         int64_t silent, bool prediction, std::optional<int> ladder, double ratio, bool gated,
                         std::optional<double> v_reset, int64_t rho, std::optional<int64_t> iterations,
                         const std::string& emission, int threads) {
  Call call(x);
  call.threshold(theta);
  call.v_init(v_init);
  call.hard_reset(v_reset);
  if (rho) call.calibration(rho, iterations);
  call.emission(emission, true);
  const bool plain = call.job.emission == Emission::Calibrated, starts = rho && call.job.emission != Emission::Block;
  if (!rho && !plain) throw py::value_error("emission '" + emission + "' needs rho >= 1, got 0");
  General of;
  of.s_min = static_cast<double>(levels.first);
  of.s_max = static_cast<double>(levels.second);
  if (count.first) of.n_min = static_cast<double>(*count.first);
  if (count.second) of.n_max = static_cast<double>(*count.second);
  of.upper = upper;
  of.lower = lower.value_or(INFINITY);
  of.strict = strict;
  of.leak = leak;
  of.silent = silent;
  of.prediction = prediction;
  of.rungs = ladder.value_or(0);
  of.ratio = ratio;
  of.gated = gated;
  call.general(of, emitted, step_bias, step_scale);
  py::array spikes = call.spikes(), counted = call.counts(call.job.count);
  py::object v = plain ? py::object(call.potentials(call.job.v)) : py::none();
  py::object shifted = starts ? py::object(call.potentials(call.job.v_init_out)) : py::none();
  py::object offset = starts ? py::object(call.counts(call.job.offset)) : py::none();
  call.run(threads);
  return py::make_tuple(spikes, v, counted, shifted, offset);
}

py::tuple calibrate_v_init(const py::array& x, const Value& theta, const std::optional<Value>& v_init, int64_t rho,
                           std::optional<int64_t> iterations, int threads) {
  Call call(x);
  call.threshold(theta);
  call.v_init(v_init);
  call.calibration(rho, iterations);
  py::array shifted = call.potentials(call.job.v_init_out), offset = call.counts(call.job.offset);
  py::array count = call.counts(call.job.count);
  call.run(threads);
  return py::make_tuple(shifted, offset, count);
}

py::dict facts() {
  py::dict facts;
  facts["compiler"] = __VERSION__;
  facts["cpu_capability"] = cpu::capability();
  facts["built_with_torch"] = COS_EXT_BUILD_TORCH;
  facts["built_with_cuda"] = COS_EXT_BUILD_CUDA;
  facts["cuda_archs"] = COS_EXT_BUILD_CUDA_ARCHS;
  facts["cuda_off"] = COS_EXT_BUILD_CUDA_OFF;
  return facts;
}

}  // namespace

// No state is shared but the choice of instruction set, which is made once (cpu/dispatch.cpp); each call has its own Call.
PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "cos_ext's kernels over NumPy arrays (float16, float32, float64), without torch.";
  m.def("if_forward", &if_forward, py::arg("x_seq"), py::arg("v_threshold"), py::arg("v_init") = py::none(), py::kw_only(),
        py::arg("v_reset") = py::none(), py::arg("threads") = 1,
        "-> (spikes, v, spike_count); see cos_ext.functional.if_forward");
  m.def("cos_forward", &cos_forward, py::arg("x_seq"), py::arg("v_threshold"), py::arg("v_init") = py::none(), py::kw_only(),
        py::arg("rho"), py::arg("iterations") = 1, py::arg("emission") = "calibrated", py::arg("threads") = 1,
        "-> (spikes, v, spike_count, v_init, offset_spikes), v None unless emission is calibrated; see "
        "cos_ext.functional.cos_forward");
  m.def("neuron_forward", &neuron_forward, py::arg("x_seq"), py::arg("v_threshold"), py::arg("v_init") = py::none(),
        py::kw_only(), py::arg("levels") = std::pair<int64_t, int64_t>(0, 1), py::arg("upper") = 1.0,
        py::arg("lower") = py::none(), py::arg("strict") = true, py::arg("count") = std::pair<Bound, Bound>(),
        py::arg("emitted") = py::none(), py::arg("leak") = 1.0, py::arg("step_bias") = py::none(),
        py::arg("step_scale") = py::none(), py::arg("silent") = 0, py::arg("prediction") = false, py::arg("ladder") = py::none(),
        py::arg("ratio") = 0.75, py::arg("gated") = false, py::arg("v_reset") = py::none(), py::arg("rho") = 0,
        py::arg("iterations") = 1, py::arg("emission") = "calibrated", py::arg("threads") = 1,
        "-> (spikes, v, spike_count, v_init, offset_spikes), None where there is no such result; see cos_ext.Neuron and "
        "cos_ext.functional.neuron_forward");
  m.def("calibrate_v_init", &calibrate_v_init, py::arg("x_seq"), py::arg("v_threshold"), py::arg("v_init") = py::none(),
        py::kw_only(), py::arg("rho"), py::arg("iterations") = 1, py::arg("threads") = 1,
        "-> (v_init, offset_spikes, spike_count); see cos_ext.functional.calibrate_v_init");
  m.def("build_facts", &facts, "How this module was compiled, and the CPU capability chosen on this machine.");
}
