// The bodies of all operators, written once for both devices: check, allocate, describe the job (builder.h), launch.
// A device's file instantiates them with its Launch and registers them; schemas are in ops.cpp.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "box.h"
#include "builder.h"

namespace cos_ext {

using MaybeTensor = std::optional<Tensor>;
using MaybeDouble = std::optional<double>;

// A result that was not asked for: an undefined tensor, which is None in Python, as aten's convolution_backward returns it. With
// `Tensor?` in the schema torch would neither functionalize an operator that writes over its input (can_auto_functionalize) nor
// trace one (torch.jit.trace).
inline Tensor or_none(const MaybeTensor& result) { return result ? *result : Tensor(); }

// Launch is a stateless type with `static void run(const Job&, const Tensor& x)`, `back` alike for backpropagation, and kSlots,
// the rows of a tally.
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
    const MaybeTensor v = build.result(return_v, build.state());
    const MaybeTensor count = build.result(return_count, ScalarType::Int);
    build.v(v);
    build.count(count);
    build.launch(Launch::run);
    return {spikes, or_none(v), or_none(count)};
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
    const MaybeTensor v = build.result(return_v, build.state());
    const MaybeTensor count = build.result(return_count, ScalarType::Int);
    const MaybeTensor shifted = build.result(return_v_init, build.state());
    const MaybeTensor offset = build.result(return_offset, ScalarType::Int);
    const MaybeTensor statistics = build.tally(return_statistics, Launch::kSlots);
    build.v(v);
    build.count(count);
    build.v_init_out(shifted);
    build.offset(offset);
    build.launch(Launch::run);
    return {spikes, or_none(v), or_none(count), or_none(shifted), or_none(offset), or_none(statistics)};
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

  using GeneralResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
  static GeneralResults general_any(const Tensor& x, const MaybeTensor& theta, double theta_value, const MaybeTensor& v_init,
                                    MaybeDouble v_init_value, MaybeDouble v_reset, const General& of, const MaybeTensor& emitted,
                                    const MaybeTensor& step_bias, const MaybeTensor& step_scale, int64_t rho, int64_t iterations,
                                    int64_t emission, bool return_v, bool return_count, bool return_v_init, bool return_offset,
                                    const MaybeTensor& scale, const MaybeTensor& bias, const MaybeTensor& residual,
                                    bool inplace) {
    Builder build(x, theta, theta_value, v_init, v_init_value);
    build.hard_reset(v_reset);
    if (rho) build.calibrate(rho, iterations);
    STD_TORCH_CHECK(rho || emission == 0, "emission ", emission, " needs rho >= 1");
    build.emission(emission, return_v, Emission::Block);
    check_general_calibration(of, rho, emission, v_reset.has_value(), step_scale.has_value(), return_v_init || return_offset);
    build.general(of, emitted, step_bias, step_scale);
    build.fuse(scale, bias, residual);
    Tensor spikes = build.emit(inplace);
    const MaybeTensor v = build.result(return_v, build.state());
    const MaybeTensor count = build.result(return_count, ScalarType::Int);
    const MaybeTensor shifted = build.result(return_v_init, build.state());
    const MaybeTensor offset = build.result(return_offset, ScalarType::Int);
    build.v(v);
    build.count(count);
    build.v_init_out(shifted);
    build.offset(offset);
    build.launch(Launch::run);
    return {spikes, or_none(v), or_none(count), or_none(shifted), or_none(offset)};
  }
  static General general_of(int64_t s_min, int64_t s_max, double n_min, double n_max, double upper, double lower, bool strict,
                            double leak, int64_t silent, bool prediction, int64_t rungs, double ratio, bool gated) {
    General of;
    of.s_min = static_cast<double>(s_min);
    of.s_max = static_cast<double>(s_max);
    of.n_min = n_min;
    of.n_max = n_max;
    of.upper = upper;
    of.lower = lower;
    of.strict = strict;
    of.leak = leak;
    of.silent = silent;
    of.prediction = prediction;
    of.rungs = static_cast<int32_t>(std::clamp<int64_t>(rungs, -1, kMostRungs + 1));
    of.ratio = ratio;
    of.gated = gated;
    return of;
  }
  static GeneralResults general_forward(Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init,
                                        MaybeDouble v_init_value, MaybeDouble v_reset, int64_t s_min, int64_t s_max, double n_min,
                                        double n_max, double upper, double lower, bool strict, double leak, int64_t silent,
                                        bool prediction, int64_t rungs, double ratio, bool gated, MaybeTensor emitted,
                                        MaybeTensor step_bias, MaybeTensor step_scale, int64_t rho, int64_t iterations,
                                        int64_t emission, bool return_v, bool return_count, bool return_v_init,
                                        bool return_offset, MaybeTensor scale, MaybeTensor bias, MaybeTensor residual) {
    const General of =
        general_of(s_min, s_max, n_min, n_max, upper, lower, strict, leak, silent, prediction, rungs, ratio, gated);
    return general_any(x, theta, theta_value, v_init, v_init_value, v_reset, of, emitted, step_bias, step_scale, rho, iterations,
                       emission, return_v, return_count, return_v_init, return_offset, scale, bias, residual, false);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor> general_forward_(
      Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init, MaybeDouble v_init_value, MaybeDouble v_reset,
      int64_t s_min, int64_t s_max, double n_min, double n_max, double upper, double lower, bool strict, double leak,
      int64_t silent, bool prediction, int64_t rungs, double ratio, bool gated, MaybeTensor emitted, MaybeTensor step_bias,
      MaybeTensor step_scale, int64_t rho, int64_t iterations, int64_t emission, bool return_v, bool return_count,
      bool return_v_init, bool return_offset, MaybeTensor scale, MaybeTensor bias, MaybeTensor residual) {
    const General of =
        general_of(s_min, s_max, n_min, n_max, upper, lower, strict, leak, silent, prediction, rungs, ratio, gated);
    auto [spikes, v, count, shifted, offset] =
        general_any(x, theta, theta_value, v_init, v_init_value, v_reset, of, emitted, step_bias, step_scale, rho, iterations,
                    emission, return_v, return_count, return_v_init, return_offset, scale, bias, residual, true);
    return {v, count, shifted, offset};
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
    const MaybeTensor shifted = build.result(true, build.state());
    const MaybeTensor offset = build.result(true, ScalarType::Int);
    const MaybeTensor count = build.result(true, ScalarType::Int);
    build.v_init_out(shifted);
    build.offset(offset);
    build.count(count);
    build.launch(Launch::run);
    return {*shifted, *offset, *count};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> if_backward(Tensor grad, Tensor x, MaybeTensor theta, double theta_value,
                                                                MaybeTensor v_init, MaybeDouble v_init_value, MaybeDouble v_reset,
                                                                int64_t surrogate, double alpha, bool detach_reset,
                                                                bool of_v_init, bool of_theta, MaybeTensor bias,
                                                                MaybeTensor residual, bool of_bias) {
    STD_TORCH_CHECK(v_init || v_init_value, "v_init must be given");
    Builder build(x, theta, theta_value, v_init, v_init_value);
    build.hard_reset(v_reset);
    build.fuse(std::nullopt, bias, residual);
    Tensor grad_x = build.emit_gradient(grad, surrogate, alpha, detach_reset);
    const MaybeTensor grad_v_init = build.result(of_v_init, build.state());
    const MaybeTensor grad_theta = build.result(of_theta, build.state());
    const MaybeTensor grad_bias = build.result(of_bias, build.state());
    build.gradient_of_v_init(grad_v_init);
    build.gradient_of_theta(grad_theta);
    build.gradient_of_bias(grad_bias);
    build.launch(Launch::back);
    return {grad_x, or_none(grad_v_init), or_none(grad_theta), or_none(grad_bias)};
  }
};

#define COS_EXT_REGISTER(m, Launch)                                                       \
  m.impl("if_forward", COS_EXT_BOX(&cos_ext::Operators<Launch>::if_forward));             \
  m.impl("if_forward_", COS_EXT_BOX(&cos_ext::Operators<Launch>::if_forward_));           \
  m.impl("if_backward", COS_EXT_BOX(&cos_ext::Operators<Launch>::if_backward));           \
  m.impl("cos_forward", COS_EXT_BOX(&cos_ext::Operators<Launch>::cos_forward));           \
  m.impl("cos_forward_", COS_EXT_BOX(&cos_ext::Operators<Launch>::cos_forward_));         \
  m.impl("general_forward", COS_EXT_BOX(&cos_ext::Operators<Launch>::general_forward));   \
  m.impl("general_forward_", COS_EXT_BOX(&cos_ext::Operators<Launch>::general_forward_)); \
  m.impl("rate_forward", COS_EXT_BOX(&cos_ext::Operators<Launch>::rate_forward));         \
  m.impl("rate_forward_", COS_EXT_BOX(&cos_ext::Operators<Launch>::rate_forward_));       \
  m.impl("calibrate_v_init", COS_EXT_BOX(&cos_ext::Operators<Launch>::calibrate_v_init))

}  // namespace cos_ext
