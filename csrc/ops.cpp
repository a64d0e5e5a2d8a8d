// Every operator's schema. A parameter is a tensor or, where that is None, the float after it; v_init None and
// v_init_value None is θ/2. iterations -1 is "until exact"; emission 0 is calibrated, 1 even, 2 front (core/emission.h). The
// neurons see x_seq · scale + bias + residual; pool_rows and pool_columns 0 are no pooling of the spikes. Results that were not
// asked for are None (or_none in operators.h); statistics are rows of sums that belong added up (core/statistics.h).
#include <torch/csrc/stable/library.h>

#ifndef COS_EXT_LIBRARY  // tests/cpp/shim_ops.cpp gives the same operators another name
#define COS_EXT_LIBRARY cos_ext
#endif

#define COS_PARAMETERS "Tensor? v_threshold, float v_threshold_value, Tensor? v_init, float? v_init_value, "
#define COS_IF "float? v_reset, bool return_v, bool return_count"
#define COS_COS                                                                                                         \
  "int rho, int iterations, bool return_v, bool return_count, bool return_v_init, bool return_offset, int emission=0, " \
  "bool return_statistics=False"
#define COS_FUSED ", Tensor? scale=None, Tensor? bias=None, Tensor? residual=None"
#define COS_WINDOW "int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w"
#define COS_FUSED_BITS COS_FUSED ", Tensor? residual_level=None"
#define COS_POOL ", int pool_rows=0, int pool_columns=0"
#define COS_GENERAL                                                                                                         \
  "float? v_reset, int s_min, int s_max, float n_min, float n_max, float upper, float lower, bool strict, float leak, int " \
  "silent, "                                                                                                                \
  "bool prediction, int rungs, float ratio, bool gated, Tensor? emitted, Tensor? step_bias, Tensor? step_scale, int rho, "  \
  "int iterations, int emission, bool return_v, bool return_count, bool return_v_init, bool return_offset"
#define COS_RESULTS "Tensor v, Tensor spike_count, Tensor v_init_out, Tensor offset_spikes, Tensor statistics)"

STABLE_TORCH_LIBRARY(COS_EXT_LIBRARY, m) {
  m.def("if_forward(Tensor x_seq, " COS_PARAMETERS COS_IF COS_FUSED COS_POOL
        ") -> (Tensor spikes, Tensor v, Tensor spike_count)");
  m.def("if_forward_(Tensor(a!) x_seq, " COS_PARAMETERS COS_IF COS_FUSED ") -> (Tensor v, Tensor spike_count)");
  m.def("cos_forward(Tensor x_seq, " COS_PARAMETERS COS_COS COS_FUSED COS_POOL ") -> (Tensor spikes, " COS_RESULTS);
  m.def("cos_forward_(Tensor(a!) x_seq, " COS_PARAMETERS COS_COS COS_FUSED ") -> (" COS_RESULTS);
  // core/general.h. rho 0: no calibration. emission 3 is block: planned again in every rho steps.
  m.def("general_forward(Tensor x_seq, " COS_PARAMETERS COS_GENERAL COS_FUSED
        ") -> (Tensor spikes, Tensor v, Tensor spike_count, Tensor v_init_out, Tensor offset_spikes)");
  m.def("general_forward_(Tensor(a!) x_seq, " COS_PARAMETERS COS_GENERAL COS_FUSED
        ") -> (Tensor v, Tensor spike_count, Tensor v_init_out, Tensor offset_spikes)");
  m.def("rate_forward(Tensor x_mean, " COS_PARAMETERS "int rho" COS_FUSED ") -> Tensor rates");
  m.def("rate_forward_(Tensor(a!) x_mean, " COS_PARAMETERS "int rho" COS_FUSED ") -> ()");
  m.def("calibrate_v_init(Tensor x_seq, " COS_PARAMETERS
        "int rho, int iterations) -> (Tensor v_init_out, Tensor offset_spikes, Tensor spike_count)");
  // The gradients of if_forward, by neuron for v_init and v_threshold, from that of the spikes. surrogate: core/surrogate.h. An
  // x_seq with stride 0 in time has a gradient [1, ...]. That of a residual is that of x_seq.
  m.def("if_backward(Tensor grad, Tensor x_seq, " COS_PARAMETERS
        "float? v_reset, int surrogate, float alpha, bool detach_reset, bool of_v_init, bool of_v_threshold, Tensor? bias=None, "
        "Tensor? residual=None, bool of_bias=False) -> (Tensor x_seq, Tensor v_init, Tensor v_threshold, Tensor bias)");
  // a = θ clip(floor(z L/θ + noise + 1/2)/L, 0, 1), and its straight-through gradients from that of a (core/quantise.h). The
  // threshold is one value in z's state dtype.
  m.def("qcfs(Tensor z, Tensor threshold, int levels, Tensor? noise=None) -> Tensor");
  m.def("qcfs_backward(Tensor grad, Tensor z, Tensor threshold, int levels, Tensor? noise=None) -> (Tensor z, Tensor threshold)");
  // weight: [blocks, kernel_w, kernel_h, C, block] (cpu/spike_conv.h); it and bias in x's state dtype. On a CPU alone.
  m.def("spike_conv2d(Tensor x, Tensor? level, Tensor weight, Tensor? bias, int outputs, " COS_WINDOW ") -> Tensor");
  // spike_conv2d and the neurons that read it, in one pass: x is [steps*B, ...], the spikes are [steps, B, ...]. rho 0: no
  // calibration. With a level (the only element of a tensor), x or residual are bits: int64 [..., H, W, ceil(C / 64)]. So are the
  // spikes where they are asked for.
  m.def("spike_layer(Tensor x, Tensor? level, Tensor weight, Tensor? conv_bias, int outputs, " COS_WINDOW
        ", int steps, " COS_PARAMETERS "float? v_reset, int rho, int iterations, int emission" COS_FUSED_BITS COS_POOL
        ", bool to_bits=False) -> Tensor spikes");
  // The same neurons on currents that are there: x_seq [T, B, C, H, W], channels innermost.
  m.def("spike_bits(Tensor x_seq, " COS_PARAMETERS "float? v_reset, int rho, int iterations, int emission" COS_FUSED_BITS
        ") -> Tensor bits");
}
