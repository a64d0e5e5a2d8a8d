// The bodies of all operators, written once for both devices: check, allocate, describe the job, launch.
// A device's file instantiates them with its Launch and registers them; schemas are in ops.cpp.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <numeric>
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
  const StableIValue none = from(std::nullopt);
  std::array<StableIValue, 6> stack{from(like), from(std::optional<ScalarType>(type)), none, none, none, none};
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
  // The mean over rho steps instead of spikes, from x [1, *neurons].
  void rate(int64_t rho) {
    check_rate(rho);
    job_.rho = rho;
    job_.emission = Emission::Rate;
  }
  void fuse(const std::optional<Tensor>& scale, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual) {
    if (scale) check_parameter("scale", *scale, x_);
    if (bias) check_parameter("bias", *bias, x_);
    if (residual) check_residual(*residual, x_);
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
    }
    spikes_ = inplace ? x_ : job_.pool.rows ? pooled() : torch::stable::empty_like(x_);
    return *spikes_;
  }
  // The gradient of x where that of the spikes is `grad`; x that is the same at every step has one.
  Tensor emit_gradient(const Tensor& grad) {
    check_residual(grad, x_);
    check_fused_steps(x_.size(0));
    job_.steps = x_.size(0);
    residual_ = grad;
    const bool once = x_.size(0) > 1 && x_.stride(0) == 0;
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

  Tensor result(bool wanted, ScalarType type) {
    if (!wanted) return torch::stable::new_empty(x_, {0}, type);
    STD_TORCH_CHECK(!job_.pool.rows, "with pool there are no results by neuron");
    if (!like_) like_ = torch::stable::select(x_, 0, 0);
    Tensor made = empty_like_as(*like_, type);
    if (!result_like_) result_like_ = made;
    return made;
  }
  // Sums over the neurons, [slots, tally_size(rho)].
  Tensor tally(bool wanted, int64_t slots) {
    if (!wanted) return torch::stable::new_empty(x_, {0}, ScalarType::Long);
    check_statistics(job_.rho);
    Tensor made = torch::stable::new_zeros(x_, {slots, tally_size(job_.rho)}, ScalarType::Long);
    job_.tally = made.mutable_data_ptr<int64_t>();
    job_.slots = slots;
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
    launch(job_, x_);
  }

 private:
  std::vector<int64_t> bits_sizes() const {
    STD_TORCH_CHECK(x_.dim() == 5, "bits are for x [steps, B, C, H, W]");
    return {x_.size(0), x_.size(1), x_.size(3), x_.size(4), words(x_.size(2))};
  }

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
  std::optional<Tensor> theta_, v_init_, scale_, bias_, residual_, spikes_, bits_, level_, like_, result_like_;
};

using MaybeTensor = std::optional<Tensor>;
using MaybeDouble = std::optional<double>;

// Launch is a stateless type with `static void run(const Job&, const Tensor& x)` and kSlots, the rows of a tally.
template <class Launch>
struct Operators {
  static std::tuple<Tensor, Tensor, Tensor> if_any(const Tensor& x, const MaybeTensor& theta, double theta_value,
                                                   const MaybeTensor& v_init, MaybeDouble v_init_value, MaybeDouble v_reset,
                                                   bool return_v, bool return_count, const MaybeTensor& scale,
                                                   const MaybeTensor& bias, const MaybeTensor& residual, int64_t pool_rows,
                                                   int64_t pool_columns, bool inplace) {
    Builder build(x, theta, theta_value, v_init, v_init_value);
    build.hard_reset(v_reset);
    build.fuse(scale, bias, residual);
    build.pool(pool_rows, pool_columns);
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
                                                       bool return_count, MaybeTensor scale, MaybeTensor bias,
                                                       MaybeTensor residual, int64_t pool_rows, int64_t pool_columns) {
    return if_any(x, theta, theta_value, v_init, v_init_value, v_reset, return_v, return_count, scale, bias, residual, pool_rows,
                  pool_columns, false);
  }
  static std::tuple<Tensor, Tensor> if_forward_(Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init,
                                                MaybeDouble v_init_value, MaybeDouble v_reset, bool return_v, bool return_count,
                                                MaybeTensor scale, MaybeTensor bias, MaybeTensor residual) {
    auto [spikes, v, count] =
        if_any(x, theta, theta_value, v_init, v_init_value, v_reset, return_v, return_count, scale, bias, residual, 0, 0, true);
    return {v, count};
  }

  using CosResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
  static CosResults cos_any(const Tensor& x, const MaybeTensor& theta, double theta_value, const MaybeTensor& v_init,
                            MaybeDouble v_init_value, int64_t rho, int64_t iterations, bool return_v, bool return_count,
                            bool return_v_init, bool return_offset, int64_t emission, bool return_statistics,
                            const MaybeTensor& scale, const MaybeTensor& bias, const MaybeTensor& residual, int64_t pool_rows,
                            int64_t pool_columns, bool inplace) {
    Builder build(x, theta, theta_value, v_init, v_init_value);
    build.calibrate(rho, iterations);
    build.emission(emission, return_v);
    build.fuse(scale, bias, residual);
    build.pool(pool_rows, pool_columns);
    Tensor spikes = build.emit(inplace);
    Tensor v = build.result(return_v, build.state());
    Tensor count = build.result(return_count, ScalarType::Int);
    Tensor shifted = build.result(return_v_init, build.state());
    Tensor offset = build.result(return_offset, ScalarType::Int);
    Tensor statistics = build.tally(return_statistics, Launch::kSlots);
    build.v(v);
    build.count(count);
    build.v_init_out(shifted);
    build.offset(offset);
    build.launch(Launch::run);
    return {spikes, v, count, shifted, offset, statistics};
  }

  static CosResults cos_forward(Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init, MaybeDouble v_init_value,
                                int64_t rho, int64_t iterations, bool return_v, bool return_count, bool return_v_init,
                                bool return_offset, int64_t emission, bool return_statistics, MaybeTensor scale, MaybeTensor bias,
                                MaybeTensor residual, int64_t pool_rows, int64_t pool_columns) {
    return cos_any(x, theta, theta_value, v_init, v_init_value, rho, iterations, return_v, return_count, return_v_init,
                   return_offset, emission, return_statistics, scale, bias, residual, pool_rows, pool_columns, false);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cos_forward_(
      Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init, MaybeDouble v_init_value, int64_t rho,
      int64_t iterations, bool return_v, bool return_count, bool return_v_init, bool return_offset, int64_t emission,
      bool return_statistics, MaybeTensor scale, MaybeTensor bias, MaybeTensor residual) {
    auto [spikes, v, count, shifted, offset, statistics] =
        cos_any(x, theta, theta_value, v_init, v_init_value, rho, iterations, return_v, return_count, return_v_init,
                return_offset, emission, return_statistics, scale, bias, residual, 0, 0, true);
    return {v, count, shifted, offset, statistics};
  }

  static Tensor rate_any(const Tensor& x, const MaybeTensor& theta, double theta_value, const MaybeTensor& v_init,
                         MaybeDouble v_init_value, int64_t rho, const MaybeTensor& scale, const MaybeTensor& bias,
                         const MaybeTensor& residual, bool inplace) {
    STD_TORCH_CHECK(x.dim() >= 1 && x.size(0) == 1, "x_mean must be [1, *neurons]");
    Builder build(x, theta, theta_value, v_init, v_init_value);
    build.rate(rho);
    build.fuse(scale, bias, residual);
    Tensor rates = build.emit(inplace);
    build.launch(Launch::run);
    return rates;
  }
  static Tensor rate_forward(Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init, MaybeDouble v_init_value,
                             int64_t rho, MaybeTensor scale, MaybeTensor bias, MaybeTensor residual) {
    return rate_any(x, theta, theta_value, v_init, v_init_value, rho, scale, bias, residual, false);
  }
  static void rate_forward_(Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init, MaybeDouble v_init_value,
                            int64_t rho, MaybeTensor scale, MaybeTensor bias, MaybeTensor residual) {
    rate_any(x, theta, theta_value, v_init, v_init_value, rho, scale, bias, residual, true);
  }

  static std::tuple<Tensor, Tensor, Tensor> calibrate_v_init(Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init,
                                                             MaybeDouble v_init_value, int64_t rho, int64_t iterations) {
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

#define COS_EXT_REGISTER(m, Launch)                                               \
  m.impl("if_forward", TORCH_BOX(&cos_ext::Operators<Launch>::if_forward));       \
  m.impl("if_forward_", TORCH_BOX(&cos_ext::Operators<Launch>::if_forward_));     \
  m.impl("cos_forward", TORCH_BOX(&cos_ext::Operators<Launch>::cos_forward));     \
  m.impl("cos_forward_", TORCH_BOX(&cos_ext::Operators<Launch>::cos_forward_));   \
  m.impl("rate_forward", TORCH_BOX(&cos_ext::Operators<Launch>::rate_forward));   \
  m.impl("rate_forward_", TORCH_BOX(&cos_ext::Operators<Launch>::rate_forward_)); \
  m.impl("calibrate_v_init", TORCH_BOX(&cos_ext::Operators<Launch>::calibrate_v_init))

}  // namespace cos_ext
