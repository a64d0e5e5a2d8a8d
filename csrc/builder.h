// What an operator gathers before it launches: checked tensors, results with room for them, and the job that describes them.
// The operators are in operators.h.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>
#include <vector>

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
  const StableIValue none = from(std::nullopt);
  std::array<StableIValue, 6> stack{from(like), from(std::optional<ScalarType>(type)), none, none, none, none};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// torch::stable::empty_like(t); of a contiguous one by a third of the way, without the dispatcher.
inline Tensor room_like(const Tensor& t) {
  if (!t.is_contiguous()) return torch::stable::empty_like(t);
  int32_t dtype = 0, device = 0;
  STD_TORCH_CHECK(aoti_torch_get_dtype(t.get(), &dtype) == 0 && aoti_torch_get_device_type(t.get(), &device) == 0,
                  "no dtype or device");
  AtenTensorHandle made = nullptr;
  STD_TORCH_CHECK(
      aoti_torch_empty_strided(t.dim(), t.sizes().data(), t.strides().data(), dtype, device, t.get_device_index(), &made) == 0,
      "empty_strided failed");
  return Tensor(made);
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
  void emission(int64_t emission, bool return_v, Emission last = Emission::Front) {
    check_emission(emission, return_v, last);
    job_.emission = static_cast<Emission>(emission);
    if (emission) job_.iterations = 0;  // the count is all it takes
  }
  // The mean over rho steps instead of spikes, from x [1, *neurons].
  void rate(int64_t rho) {
    check_rate(rho);
    job_.rho = rho;
    job_.emission = Emission::Rate;
  }
  void fuse(const std::optional<Tensor>& scale, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual) {
    if (scale) check_parameter("scale", *scale, x_);
    if (bias) check_parameter("bias", *bias, x_);
    if (residual) check_like_input("residual", *residual, x_);
    if (scale || bias || residual) check_fused_steps(x_.size(0));
    scale_ = in_state(scale);
    bias_ = in_state(bias);
    residual_ = residual;
  }
  // A residual of one level: bits, [steps, B, H, W, words(C)] for x [steps, B, C, H, W].
  void fuse_bits(const Tensor& residual, const Tensor& level) {
    STD_TORCH_CHECK(level.scalar_type() == x_.scalar_type(), "residual's level must have x's dtype");
    check_bits("residual", residual, level, bits_sizes());
    check_fused_steps(x_.size(0));
    residual_ = residual;
    level_ = level;
  }
  // Must come before emit().
  void pool(int64_t rows, int64_t columns) {
    if (rows == 0 && columns == 0) return;
    check_pool(rows, columns, x_);
    check_fused_steps(x_.size(0));
    job_.pool.rows = rows;
    job_.pool.columns = columns;
    job_.pool.height = x_.size(x_.dim() - 2);
    job_.pool.width = x_.size(x_.dim() - 1);
    if (windows_of(false)) return;
    if (x_.dim() >= 4 && windows_of(true)) {
      job_.pool.inner = x_.size(x_.dim() - 3);
    } else {
      x_ = torch::stable::contiguous(x_);
    }
  }
  void hard_reset(std::optional<double> v_reset) {
    job_.hard_reset = v_reset.has_value();
    job_.v_reset = v_reset.value_or(0);
  }

  // Makes general neurons of them (core/general.h). Must come before emit().
  void general(const General& of, const std::optional<Tensor>& emitted, const std::optional<Tensor>& step_bias,
               const std::optional<Tensor>& step_scale) {
    check_general(of, std::max(x_.size(0), job_.rho), emitted.has_value(), step_scale.has_value());
    if (emitted) check_parameter("emitted", *emitted, x_);
    if (step_bias) check_step_bias(*step_bias, x_);
    if (step_scale) check_step_scale(*step_scale, x_);
    job_.general = of;
    job_.general.on = true;
    emitted_ = in_state(emitted);
    step_bias_ = in_state(step_bias);
    step_scale_ = step_scale;
  }

  // Spikes to a fresh tensor of x's memory format, or over x.
  Tensor emit(bool inplace) {
    job_.steps = x_.size(0);
    if (inplace) {
      check_inplace(x_);
      check_apart("v_threshold", theta_, x_);
      check_apart("v_init", v_init_, x_);
      check_apart("scale", scale_, x_);
      check_apart("bias", bias_, x_);
      check_apart("residual", residual_, x_);
      check_apart("emitted", emitted_, x_);
      check_apart("step_bias", step_bias_, x_);
    }
    spikes_ = inplace ? x_ : job_.pool.rows ? pooled() : room_like(x_);
    return *spikes_;
  }
  // The gradient of x where that of the spikes is `sent`; x that is the same at every step has one.
  Tensor emit_gradient(const Tensor& sent, int64_t surrogate, double alpha, bool detach_reset) {
    check_like_input("grad", sent, x_);
    check_surrogate(surrogate, alpha);
    check_fused_steps(x_.size(0));
    job_.steps = x_.size(0);
    job_.gradients.surrogate = static_cast<Surrogate>(surrogate);
    job_.gradients.alpha = alpha;
    job_.gradients.detach_reset = detach_reset;
    sent_ = sent;
    const bool once = x_.size(0) > 1 && x_.stride(0) == 0;
    STD_TORCH_CHECK(!once || !residual_, "with a residual, x_seq must have steps of its own: no stride 0 in time");
    spikes_ = torch::stable::empty_like(once ? torch::stable::narrow(x_, 0, 0, 1) : x_);
    return *spikes_;
  }
  // As bits, [steps, B, H, W, words(C)] for x [steps, B, C, H, W], channels innermost.
  Tensor emit_bits() {
    STD_TORCH_CHECK(!job_.pool.rows, "means of spikes are no bits");
    STD_TORCH_CHECK(x_.dim() == 5 && windows_of(true),
                    "bits are for x_seq [T, B, C, H, W] with channels innermost, without gaps");
    check_fused_steps(x_.size(0));
    job_.steps = x_.size(0);
    bits_ = torch::stable::new_empty(x_, bits_sizes(), ScalarType::Long);
    return *bits_;
  }

  std::optional<Tensor> result(bool wanted, ScalarType type) {
    if (!wanted) return std::nullopt;
    STD_TORCH_CHECK(!job_.pool.rows, "with pool there are no results by neuron");
    if (!like_) like_ = torch::stable::select(x_, 0, 0);
    Tensor made = empty_like_as(*like_, type);
    if (!result_like_) result_like_ = made;
    return made;
  }
  // Sums over the neurons, [slots, tally_size(rho)].
  std::optional<Tensor> tally(bool wanted, int64_t slots) {
    if (!wanted) return std::nullopt;
    check_statistics(job_.rho);
    Tensor made = torch::stable::new_zeros(x_, {slots, tally_size(job_.rho)}, ScalarType::Long);
    job_.tally = made.mutable_data_ptr<int64_t>();
    job_.slots = slots;
    return made;
  }
  ScalarType state() const { return state_; }

  void v(const std::optional<Tensor>& t) { job_.v = pointer(t); }
  void count(const std::optional<Tensor>& t) { job_.count = static_cast<int32_t*>(pointer(t)); }
  void v_init_out(const std::optional<Tensor>& t) { job_.v_init_out = pointer(t); }
  void gradient_of_theta(const std::optional<Tensor>& t) { job_.gradients.theta = pointer(t); }
  void gradient_of_bias(const std::optional<Tensor>& t) { job_.gradients.bias = pointer(t); }
  void gradient_of_v_init(const std::optional<Tensor>& t) { job_.gradients.v_init = pointer(t); }
  void offset(const std::optional<Tensor>& t) { job_.offset = static_cast<int32_t*>(pointer(t)); }

  template <class Launch>
  void launch(const Launch& launch) {
    if (job_.neurons == 0) return;
    const bool timeless = !spikes_ && !bits_;
    const Tensor& guide = timeless ? *result_like_ : job_.pool.rows || bits_ ? x_ : *spikes_;
    const auto order = walk_order(sizes_, neuron_strides(guide, !timeless));
    job_.x = x_.const_data_ptr();
    job_.x_layout = make_layout(sizes_, neuron_strides(x_, true), order);
    job_.x_time = x_.size(0) > 1 ? x_.stride(0) : 0;
    if (spikes_) {
      job_.spikes = spikes_->mutable_data_ptr();
      if (!job_.pool.rows) job_.spikes_layout = make_layout(sizes_, neuron_strides(*spikes_, true), order);
      job_.spikes_time = spikes_->stride(0);
    }
    if (result_like_) job_.result_layout = make_layout(sizes_, neuron_strides(*result_like_, false), order);
    describe(job_.theta, theta_, order);
    describe(job_.v_init, v_init_, order);
    describe(job_.scale, scale_, order);
    describe(job_.bias, bias_, order);
    describe(job_.general.emitted, emitted_, order);
    if (step_bias_) {
      describe(job_.general.bias, torch::stable::select(*step_bias_, 0, 0), order);
      job_.general.bias_time = step_bias_->size(0) > 1 ? step_bias_->stride(0) : 0;
    }
    if (step_scale_) job_.general.scales = step_scale_->const_data_ptr<double>();
    if (bits_ || level_) job_.channels = x_.size(2);
    if (bits_) job_.bits = {static_cast<uint64_t*>(bits_->mutable_data_ptr()), bits_->stride(0)};
    if (level_) {
      // Read alone.
      job_.residual_bits = {static_cast<uint64_t*>(const_cast<void*>(residual_->const_data_ptr())), residual_->stride(0)};
      job_.residual_level = level_->const_data_ptr();
    } else if (residual_) {
      job_.residual = residual_->const_data_ptr();
      job_.residual_layout = make_layout(sizes_, neuron_strides(*residual_, true), order);
      job_.residual_time = x_.size(0) > 1 ? residual_->stride(0) : 0;
    }
    if (sent_) {
      job_.gradients.sent = sent_->const_data_ptr();
      job_.gradients.sent_layout = make_layout(sizes_, neuron_strides(*sent_, true), order);
      job_.gradients.sent_time = x_.size(0) > 1 ? sent_->stride(0) : 0;
    }
    launch(job_, x_);
  }

 private:
  std::vector<int64_t> bits_sizes() const {
    STD_TORCH_CHECK(x_.dim() == 5, "bits are for x [steps, B, C, H, W]");
    return {x_.size(0), x_.size(1), x_.size(3), x_.size(4), words(x_.size(2))};
  }

  static void* pointer(const std::optional<Tensor>& t) { return t ? t->mutable_data_ptr() : nullptr; }

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

  // Whether one step's neurons lie in memory as [..., height, width], or as [..., height, width, channels] of
  // [..., channels, height, width], without gaps.
  bool windows_of(bool channels_last) const {
    std::vector<int64_t> order(sizes_.size());
    std::iota(order.begin(), order.end(), 1);
    if (channels_last) std::rotate(order.end() - 3, order.end() - 2, order.end());
    int64_t reach = 1;
    for (size_t i = order.size(); i-- > 0;) {
      const int64_t size = x_.size(order[i]);
      if (size != 1 && x_.stride(order[i]) != reach) return false;
      reach *= size;
    }
    return true;
  }

  // Room for the means of windows, in x's order of dimensions.
  Tensor pooled() const {
    const auto& pool = job_.pool;
    std::vector<int64_t> sizes{x_.size(0)};
    sizes.insert(sizes.end(), sizes_.begin(), sizes_.end());
    const size_t n = sizes.size();
    sizes[n - 2] = pool.height / pool.rows;
    sizes[n - 1] = pool.width / pool.columns;
    if (pool.inner == 1) return torch::stable::new_empty(x_, sizes);
    std::rotate(sizes.end() - 3, sizes.end() - 2, sizes.end());  // [..., height, width, channels]
    const Tensor made = torch::stable::new_empty(x_, sizes);
    const auto dim = static_cast<int64_t>(n);
    return torch::stable::transpose(torch::stable::transpose(made, dim - 2, dim - 1), dim - 3, dim - 2);
  }

  Job job_;
  Tensor x_;
  ScalarType state_;
  std::vector<int64_t> sizes_;
  std::optional<Tensor> theta_, v_init_, scale_, bias_, residual_, sent_, spikes_, bits_, level_, like_, result_like_;
  std::optional<Tensor> emitted_, step_bias_, step_scale_;
};

}  // namespace cos_ext
