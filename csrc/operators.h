// The bodies of all operators, written once for both devices: check, allocate, describe the job, launch.
// A device's file instantiates them with its Launch and registers them; schemas are in ops.cpp.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "job.h"

namespace cos_ext {

inline DType job_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return DType::Float64;
    case ScalarType::Half: return DType::Float16;
    case ScalarType::BFloat16: return DType::BFloat16;
    default: return DType::Float32;
  }
}

// empty_like(like, dtype=type), which torch::stable::empty_like lacks.
inline Tensor empty_like_as(const Tensor& like, ScalarType type) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(like), from(std::optional<ScalarType>(type)), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt)};
  STD_TORCH_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION) == 0, "empty_like failed");
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Gathers what a job needs; `launch` runs it. The tensors it holds outlive the launch.
class Builder {
 public:
  Builder(const Tensor& x, const std::optional<Tensor>& theta, double theta_value, const std::optional<Tensor>& v_init,
          std::optional<double> v_init_value)
      : x_(x), state_(state_type(x.scalar_type())) {
    check_input(x);
    check_threshold(theta, theta_value, x);
    if (v_init) check_parameter("v_init", *v_init, x);
    job_.dtype = job_dtype(x.scalar_type());
    const auto sizes = x.sizes();
    sizes_.assign(sizes.begin() + 1, sizes.end());
    job_.neurons = 1;
    for (const int64_t size : sizes_) job_.neurons *= size;
    theta_ = in_state(theta);
    v_init_ = in_state(v_init);
    job_.theta.value = theta_value;
    job_.half_theta_init = !v_init && !v_init_value;
    job_.v_init.value = v_init_value.value_or(0);
  }

  void calibrate(int64_t rho, int64_t iterations) {
    check_calibration(rho, iterations, x_);
    job_.rho = rho;
    job_.iterations = iterations;
  }
  void emission(int64_t emission, bool return_v) {
    check_emission(emission, return_v);
    job_.emission = static_cast<Emission>(emission);
    if (emission) job_.iterations = 0;  // the count is all it takes
  }
  void hard_reset(std::optional<double> v_reset) {
    job_.hard_reset = v_reset.has_value();
    job_.v_reset = v_reset.value_or(0);
  }

  // Spikes to a fresh tensor of x's memory format, or over x.
  Tensor emit(bool inplace) {
    job_.steps = x_.size(0);
    if (inplace) {
      check_inplace(x_);
      check_apart("v_threshold", theta_, x_);
      check_apart("v_init", v_init_, x_);
    }
    spikes_ = inplace ? x_ : torch::stable::empty_like(x_);
    return *spikes_;
  }

  Tensor result(bool wanted, ScalarType type) {
    if (!wanted) return torch::stable::new_empty(x_, {0}, type);
    if (!like_) like_ = torch::stable::select(x_, 0, 0);
    Tensor made = empty_like_as(*like_, type);
    if (!result_like_) result_like_ = made;
    return made;
  }
  ScalarType state() const { return state_; }

  void v(const Tensor& t) { job_.v = pointer(t); }
  void count(const Tensor& t) { job_.count = static_cast<int32_t*>(pointer(t)); }
  void v_init_out(const Tensor& t) { job_.v_init_out = pointer(t); }
  void offset(const Tensor& t) { job_.offset = static_cast<int32_t*>(pointer(t)); }

  template <class Launch>
  void launch(const Launch& launch) {
    if (job_.neurons == 0) return;
    const Tensor& guide = spikes_ ? *spikes_ : *result_like_;
    const auto order = walk_order(sizes_, neuron_strides(guide, spikes_.has_value()));
    job_.x = x_.const_data_ptr();
    job_.x_layout = make_layout(sizes_, neuron_strides(x_, true), order);
    job_.x_time = x_.size(0) > 1 ? x_.stride(0) : 0;
    if (spikes_) {
      job_.spikes = spikes_->mutable_data_ptr();
      job_.spikes_layout = make_layout(sizes_, neuron_strides(*spikes_, true), order);
      job_.spikes_time = spikes_->stride(0);
    }
    if (result_like_) job_.result_layout = make_layout(sizes_, neuron_strides(*result_like_, false), order);
    describe(job_.theta, theta_, order);
    describe(job_.v_init, v_init_, order);
    launch(job_, x_);
  }

 private:
  static void* pointer(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }

  std::optional<Tensor> in_state(const std::optional<Tensor>& parameter) const {
    if (!parameter || parameter->scalar_type() == state_) return parameter;
    return torch::stable::to(*parameter, state_);
  }

  static std::vector<int64_t> neuron_strides(const Tensor& t, bool has_time) {
    const auto strides = t.strides();
    return std::vector<int64_t>(strides.begin() + (has_time ? 1 : 0), strides.end());
  }

  void describe(Parameter& parameter, const std::optional<Tensor>& tensor, const std::vector<int>& order) const {
    if (!tensor) return;
    std::vector<int64_t> strides(sizes_.size(), 0);
    const size_t missing = sizes_.size() - static_cast<size_t>(tensor->dim());
    for (size_t d = missing; d < sizes_.size(); ++d) {
      const int64_t own = static_cast<int64_t>(d - missing);
      strides[d] = tensor->size(own) == 1 ? 0 : tensor->stride(own);
    }
    parameter.data = tensor->const_data_ptr();
    parameter.layout = make_layout(sizes_, strides, order);
    if (parameter.layout.ndim == 1 && parameter.layout.stride[0] == 0) parameter.layout.ndim = 0;
  }

  Job job_;
  Tensor x_;
  ScalarType state_;
  std::vector<int64_t> sizes_;
  std::optional<Tensor> theta_, v_init_, spikes_, like_, result_like_;
};

using MaybeTensor = std::optional<Tensor>;
using MaybeDouble = std::optional<double>;

// Launch is a stateless type with `static void run(const Job&, const Tensor& x)`.
template <class Launch>
struct Operators {
  static std::tuple<Tensor, Tensor, Tensor> if_any(const Tensor& x, const MaybeTensor& theta, double theta_value,
                                                   const MaybeTensor& v_init, MaybeDouble v_init_value,
                                                   MaybeDouble v_reset, bool return_v, bool return_count, bool inplace) {
    Builder build(x, theta, theta_value, v_init, v_init_value);
    build.hard_reset(v_reset);
    Tensor spikes = build.emit(inplace);
    Tensor v = build.result(return_v, build.state());
    Tensor count = build.result(return_count, ScalarType::Int);
    build.v(v);
    build.count(count);
    build.launch(Launch::run);
    return {spikes, v, count};
  }

  static std::tuple<Tensor, Tensor, Tensor> if_forward(Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init,
                                                       MaybeDouble v_init_value, MaybeDouble v_reset, bool return_v,
                                                       bool return_count) {
    return if_any(x, theta, theta_value, v_init, v_init_value, v_reset, return_v, return_count, false);
  }
  static std::tuple<Tensor, Tensor> if_forward_(Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init,
                                                MaybeDouble v_init_value, MaybeDouble v_reset, bool return_v,
                                                bool return_count) {
    auto [spikes, v, count] = if_any(x, theta, theta_value, v_init, v_init_value, v_reset, return_v, return_count, true);
    return {v, count};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cos_any(
      const Tensor& x, const MaybeTensor& theta, double theta_value, const MaybeTensor& v_init, MaybeDouble v_init_value,
      int64_t rho, int64_t iterations, bool return_v, bool return_count, bool return_v_init, bool return_offset,
      int64_t emission, bool inplace) {
    Builder build(x, theta, theta_value, v_init, v_init_value);
    build.calibrate(rho, iterations);
    build.emission(emission, return_v);
    Tensor spikes = build.emit(inplace);
    Tensor v = build.result(return_v, build.state());
    Tensor count = build.result(return_count, ScalarType::Int);
    Tensor shifted = build.result(return_v_init, build.state());
    Tensor offset = build.result(return_offset, ScalarType::Int);
    build.v(v);
    build.count(count);
    build.v_init_out(shifted);
    build.offset(offset);
    build.launch(Launch::run);
    return {spikes, v, count, shifted, offset};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cos_forward(
      Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init, MaybeDouble v_init_value, int64_t rho,
      int64_t iterations, bool return_v, bool return_count, bool return_v_init, bool return_offset, int64_t emission) {
    return cos_any(x, theta, theta_value, v_init, v_init_value, rho, iterations, return_v, return_count, return_v_init,
                   return_offset, emission, false);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor> cos_forward_(
      Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init, MaybeDouble v_init_value, int64_t rho,
      int64_t iterations, bool return_v, bool return_count, bool return_v_init, bool return_offset, int64_t emission) {
    auto [spikes, v, count, shifted, offset] = cos_any(x, theta, theta_value, v_init, v_init_value, rho, iterations,
                                                       return_v, return_count, return_v_init, return_offset, emission, true);
    return {v, count, shifted, offset};
  }

  static std::tuple<Tensor, Tensor, Tensor> calibrate_v_init(Tensor x, MaybeTensor theta, double theta_value,
                                                             MaybeTensor v_init, MaybeDouble v_init_value, int64_t rho,
                                                             int64_t iterations) {
    Builder build(x, theta, theta_value, v_init, v_init_value);
    build.calibrate(rho, iterations);
    Tensor shifted = build.result(true, build.state());
    Tensor offset = build.result(true, ScalarType::Int);
    Tensor count = build.result(true, ScalarType::Int);
    build.v_init_out(shifted);
    build.offset(offset);
    build.count(count);
    build.launch(Launch::run);
    return {shifted, offset, count};
  }
};

#define COS_EXT_REGISTER(m, Launch)                                              \
  m.impl("if_forward", TORCH_BOX(&cos_ext::Operators<Launch>::if_forward));      \
  m.impl("if_forward_", TORCH_BOX(&cos_ext::Operators<Launch>::if_forward_));    \
  m.impl("cos_forward", TORCH_BOX(&cos_ext::Operators<Launch>::cos_forward));    \
  m.impl("cos_forward_", TORCH_BOX(&cos_ext::Operators<Launch>::cos_forward_));  \
  m.impl("calibrate_v_init", TORCH_BOX(&cos_ext::Operators<Launch>::calibrate_v_init))

}  // namespace cos_ext
