// What must hold before any kernel touches memory, once per operator, for both devices. Python (cos_ext/_functional/)
// checks the same first and raises TypeError or ValueError; these keep direct callers of torch.ops safe.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "core/dtypes.h"
#include "core/statistics.h"
#include "general_rule.h"
#include "job.h"

namespace cos_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaxSteps = int64_t{1} << 24;  // counts stay exact in float32

inline ScalarType state_type(ScalarType type) { return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

inline void check_input(const Tensor& x) {
  const auto type = x.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half || type == ScalarType::BFloat16,
      "x_seq must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(0) >= 1, "x_seq must be [T, *neurons] with T >= 1");
  STD_TORCH_CHECK(x.size(0) <= kMaxSteps, "x_seq must have at most ", kMaxSteps, " time-steps, got ", x.size(0));
}

// v_threshold or v_init given as a tensor: device, dtype and broadcasting to the neurons of x.
inline void check_parameter(const char* name, const Tensor& parameter, const Tensor& x) {
  STD_TORCH_CHECK(parameter.is_cuda() == x.is_cuda() && (x.is_cpu() || parameter.get_device_index() == x.get_device_index()),
                  name, " must be on x_seq's device");
  STD_TORCH_CHECK(parameter.scalar_type() == x.scalar_type() || parameter.scalar_type() == state_type(x.scalar_type()), name,
                  " must have x_seq's dtype or its state dtype");
  const int64_t neurons = x.dim() - 1, own = parameter.dim();
  STD_TORCH_CHECK(own <= neurons, name, " has ", own, " dimensions, more than the neurons' ", neurons);
  for (int64_t d = 0; d < own; ++d) {
    const int64_t size = parameter.size(d), wanted = x.size(1 + neurons - own + d);
    STD_TORCH_CHECK(size == wanted || size == 1, name, " does not broadcast to the neurons: size ", size, " against ", wanted);
  }
}

inline void check_threshold(const std::optional<Tensor>& tensor, double value, const Tensor& x) {
  if (tensor) {
    check_parameter("v_threshold", *tensor, x);
  } else {
    const auto type = x.scalar_type();
    const bool fine = type == ScalarType::Double     ? storable_threshold<double>(value)
                      : type == ScalarType::Half     ? storable_threshold<Half>(value)
                      : type == ScalarType::BFloat16 ? storable_threshold<BFloat16>(value)
                                                     : storable_threshold<float>(value);
    STD_TORCH_CHECK(fine, "v_threshold must be positive and finite in x_seq's dtype, got ", value);
  }
}

inline void check_calibration(int64_t rho, int64_t iterations, const Tensor& x) {
  STD_TORCH_CHECK(rho >= 1 && rho <= x.size(0), "rho must lie in 1..T = ", x.size(0), ", got ", rho);
  STD_TORCH_CHECK(iterations >= -1, "iterations must be >= 0, or -1 for until exact, got ", iterations);
}

// x_mean of rate_forward, which has no time.
inline void check_rate(int64_t rho) {
  STD_TORCH_CHECK(rho >= 1 && rho <= kMaxSteps, "rho must lie in 1..", kMaxSteps, ", got ", rho);
}

// A residual, or the gradient of what is sent: the same shape and dtype, on the same device.
inline void check_like_input(const char* name, const Tensor& tensor, const Tensor& x) {
  STD_TORCH_CHECK(tensor.is_cuda() == x.is_cuda() && (x.is_cpu() || tensor.get_device_index() == x.get_device_index()), name,
                  " must be on x_seq's device");
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, " must have x_seq's dtype");
  bool same = tensor.dim() == x.dim();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = tensor.size(d) == x.size(d);
  STD_TORCH_CHECK(same, name, " must have x_seq's shape");
}
inline void check_fused_steps(int64_t steps) {
  STD_TORCH_CHECK(steps <= kMaxFusedSteps, "gradients, scale, bias, residual and pool take at most ", kMaxFusedSteps,
                  " time-steps, got ", steps);
}

inline void check_pool(int64_t rows, int64_t columns, const Tensor& x) {
  STD_TORCH_CHECK(rows >= 1 && columns >= 1, "pool must be two sizes >= 1, got ", rows, " and ", columns);
  STD_TORCH_CHECK(x.dim() >= 3, "pool needs neurons [..., height, width]");
  const int64_t height = x.size(x.dim() - 2), width = x.size(x.dim() - 1);
  STD_TORCH_CHECK(height % rows == 0 && width % columns == 0, "pool ", rows, " x ", columns, " must divide the neurons' ", height,
                  " x ", width);
}

inline void check_statistics(int64_t rho) {
  STD_TORCH_CHECK(rho <= kMaxTallyRho, "statistics need rho <= ", kMaxTallyRho, ", got ", rho);
}

inline void check_emission(int64_t emission, bool return_v, Emission last) {
  STD_TORCH_CHECK(emission >= 0 && emission <= static_cast<int64_t>(last),
                  "emission must be 0 (calibrated), 1 (even), 2 (front) or, of general neurons, 3 (block), got ", emission);
  STD_TORCH_CHECK(emission == 0 || !return_v, "v is the potential of calibrated emission; with another there is none");
}

inline void check_general(const General& of, int64_t steps, bool emitted, bool scales) {
  const char* const fault = fault_of(of, steps, emitted, scales);
  STD_TORCH_CHECK(!fault, fault ? fault : "");
}
inline void check_step_bias(const Tensor& bias, const Tensor& x) {
  STD_TORCH_CHECK(bias.dim() >= 1 && bias.size(0) == x.size(0), "step_bias must have a value for each of the ", x.size(0),
                  " steps");
  check_parameter("step_bias", torch::stable::select(bias, 0, 0), x);
}
inline void check_step_scale(const Tensor& scale, const Tensor& x) {
  STD_TORCH_CHECK(scale.is_cuda() == x.is_cuda() && (x.is_cpu() || scale.get_device_index() == x.get_device_index()),
                  "step_scale must be on x_seq's device");
  STD_TORCH_CHECK(
      scale.scalar_type() == ScalarType::Double && scale.dim() == 1 && scale.is_contiguous() && scale.size(0) == x.size(0),
      "step_scale must be float64 [T], contiguous");
}
inline void check_general_calibration(const General& of, int64_t rho, int64_t emission, bool hard, bool scales, bool starts) {
  const char* const fault = calibration_fault(of, rho, static_cast<Emission>(emission), hard, scales, starts);
  STD_TORCH_CHECK(!fault, fault ? fault : "");
}

inline void check_surrogate(int64_t surrogate, double alpha) {
  STD_TORCH_CHECK(surrogate >= 0 && surrogate <= static_cast<int64_t>(Surrogate::FastSigmoid), "there is no surrogate ",
                  surrogate);
  STD_TORCH_CHECK(alpha > 0, "alpha must be positive, got ", alpha);
}

// In place, no two elements of x may share memory: sorted by stride, each must step over all the smaller ones.
inline void check_inplace(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  std::vector<int64_t> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] < strides[b]; });
  int64_t reach = 0;
  for (const int64_t d : order) {
    if (sizes[d] <= 1) continue;
    STD_TORCH_CHECK(strides[d] > reach, "inplace needs an x_seq whose elements do not share memory");
    reach += (sizes[d] - 1) * strides[d];
  }
}

// In place, a parameter that lies in x's memory would be overwritten while it is read.
inline void check_apart(const char* name, const std::optional<Tensor>& parameter, const Tensor& x) {
  const auto extent = [](const Tensor& t) {
    int64_t elements = 1;
    for (int64_t d = 0; d < t.dim(); ++d) elements += (t.size(d) - 1) * t.stride(d);
    const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
    return std::pair<uintptr_t, uintptr_t>(begin, begin + static_cast<uintptr_t>(elements) * t.element_size());
  };
  if (!parameter || parameter->numel() == 0 || x.numel() == 0) return;
  const auto a = extent(*parameter), b = extent(x);
  STD_TORCH_CHECK(a.second <= b.first || b.second <= a.first, name, " must not share memory with x_seq in place");
}

// Spikes of one level: bits, an int64 tensor of these sizes, and the level's tensor of one element.
inline void check_bits(const char* name, const Tensor& bits, const Tensor& level, const std::vector<int64_t>& sizes) {
  const auto found = bits.sizes();
  STD_TORCH_CHECK(bits.is_cpu() && bits.scalar_type() == ScalarType::Long && bits.is_contiguous() &&
                      std::equal(found.begin(), found.end(), sizes.begin(), sizes.end()),
                  name, " must be contiguous int64 bits on a CPU, [..., H, W, ceil(C / 64)]");
  STD_TORCH_CHECK(level.is_cpu() && level.numel() == 1, name, "'s level must be one value on a CPU");
}

// weight is packed, [blocks, kernel_w, kernel_h, C, block]; it and bias in the state dtype of x's values, which are of `type`.
inline void check_spike_conv(ScalarType type, const Tensor& weight, const std::optional<Tensor>& bias, int64_t outputs) {
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half || type == ScalarType::BFloat16,
      "x must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 5 && weight.is_contiguous() && weight.scalar_type() == state_type(type),
                  "weight must be packed, contiguous, and in x's state dtype");
  const int64_t blocks = weight.size(0), lines = weight.size(2) * weight.size(3), block = weight.size(4);
  STD_TORCH_CHECK(block == 16 || block == 32 || block == 64, "weight must be in blocks of 16, 32 or 64, got ", block);
  STD_TORCH_CHECK(lines >= 1 && weight.size(1) >= 1, "weight must have a channel and a window");
  STD_TORCH_CHECK(outputs >= 1 && (outputs + block - 1) / block == blocks, "outputs must fill ", blocks, " blocks of ", block,
                  ", got ", outputs);
  if (!bias) return;
  STD_TORCH_CHECK(bias->is_cpu() && bias->dim() == 1 && bias->size(0) == outputs && bias->is_contiguous() &&
                      bias->scalar_type() == state_type(type),
                  "bias must be [outputs], contiguous, and in x's state dtype");
}

// An operand of qcfs beside z.
inline void check_alike(const char* name, const Tensor& t, const Tensor& z) {
  STD_TORCH_CHECK(t.is_cuda() == z.is_cuda() && (z.is_cpu() || t.get_device_index() == z.get_device_index()), name,
                  " must be on z's device");
  STD_TORCH_CHECK(t.scalar_type() == z.scalar_type(), name, " must have z's dtype");
  bool same = t.dim() == z.dim();
  for (int64_t d = 0; same && d < z.dim(); ++d) same = t.size(d) == z.size(d);
  STD_TORCH_CHECK(same, name, " must have z's shape");
}
inline void check_qcfs(const Tensor& z, const Tensor& threshold, int64_t levels, int64_t most) {
  const auto type = z.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half || type == ScalarType::BFloat16,
      "z must be float32, float64, float16 or bfloat16");
  STD_TORCH_CHECK(threshold.is_cuda() == z.is_cuda() && (z.is_cpu() || threshold.get_device_index() == z.get_device_index()),
                  "threshold must be on z's device");
  STD_TORCH_CHECK(threshold.dim() == 0 && threshold.scalar_type() == state_type(type),
                  "threshold must be one value, without dimensions, in z's state dtype");
  STD_TORCH_CHECK(levels >= 1 && levels <= most, "levels must lie in 1..", most, ", got ", levels);
}

// How many windows fit into a dimension.
inline int64_t windows(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}
inline void check_window(const char* name, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  constexpr int64_t kMost = int64_t{1} << 30;
  STD_TORCH_CHECK(stride >= 1 && dilation >= 1 && padding >= 0 && stride < kMost && dilation < kMost && padding < kMost,
                  "stride and dilation must be >= 1, padding >= 0, all below 2^30");
  STD_TORCH_CHECK(size >= 1 && size + 2 * padding >= dilation * (kernel - 1) + 1, "x's ", name, " must be at least the window's ",
                  dilation * (kernel - 1) + 1, ", got ", size, " with padding ", padding);
}

}  // namespace cos_ext
