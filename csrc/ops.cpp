// Every operator's schema. A parameter is a tensor or, where that is None, the float after it; v_init None and
// v_init_value None is θ/2. iterations -1 is "until exact"; emission 0 is calibrated, 1 even, 2 front (core/emission.h). Results that were not asked for come back with no elements.
#include <torch/csrc/stable/library.h>

#ifndef COS_EXT_LIBRARY  // tests/cpp/shim_ops.cpp gives the same operators another name
#define COS_EXT_LIBRARY cos_ext
#endif

STABLE_TORCH_LIBRARY(COS_EXT_LIBRARY, m) {
  m.def(
      "if_forward(Tensor x_seq, Tensor? v_threshold, float v_threshold_value, Tensor? v_init, float? v_init_value, "
      "float? v_reset, bool return_v, bool return_count) -> (Tensor spikes, Tensor v, Tensor spike_count)");
  m.def(
      "if_forward_(Tensor(a!) x_seq, Tensor? v_threshold, float v_threshold_value, Tensor? v_init, float? v_init_value, "
      "float? v_reset, bool return_v, bool return_count) -> (Tensor v, Tensor spike_count)");
  m.def(
      "cos_forward(Tensor x_seq, Tensor? v_threshold, float v_threshold_value, Tensor? v_init, float? v_init_value, "
      "int rho, int iterations, bool return_v, bool return_count, bool return_v_init, bool return_offset, int emission=0) "
      "-> (Tensor spikes, Tensor v, Tensor spike_count, Tensor v_init_out, Tensor offset_spikes)");
  m.def(
      "cos_forward_(Tensor(a!) x_seq, Tensor? v_threshold, float v_threshold_value, Tensor? v_init, float? v_init_value, "
      "int rho, int iterations, bool return_v, bool return_count, bool return_v_init, bool return_offset, int emission=0) "
      "-> (Tensor v, Tensor spike_count, Tensor v_init_out, Tensor offset_spikes)");
  m.def(
      "calibrate_v_init(Tensor x_seq, Tensor? v_threshold, float v_threshold_value, Tensor? v_init, float? v_init_value, "
      "int rho, int iterations) -> (Tensor v_init_out, Tensor offset_spikes, Tensor spike_count)");
}
