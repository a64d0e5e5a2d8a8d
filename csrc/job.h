// What one launch has to do: pointers, layouts and options, the only thing a kernel sees. Built by operators.h and python/core_module.cpp.
// Plain data and the host code that computes layouts; no torch, no CUDA runtime, no arithmetic of neurons.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace cos_ext {

// How the spikes are ordered in time: as the calibrated neuron fires (the paper's), or planned (core/emission.h).
enum class Emission : int32_t { Calibrated, Even, Front };

enum class DType : int32_t { Float32, Float64, Float16, BFloat16 };

constexpr int kMaxDims = 16;

// The neurons of one operand, in walk order (innermost last), merged where neighbours in the walk are neighbours in memory.
// Strides in elements. ndim 0: one value serves every neuron.
struct Layout {
  int32_t ndim = 0;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};

  bool dense() const { return ndim == 1 && stride[0] == 1; }
};

// θ or v_init: `data` in the state type, or, where it is null, `value`.
struct Parameter {
  const void* data = nullptr;
  Layout layout;
  double value = 0;
};

struct Job {
  DType dtype = DType::Float32;
  int64_t neurons = 0;
  int64_t steps = 0;       // T to emit; 0: calibration only
  int64_t rho = 0;         // steps to watch; 0: no calibration
  int64_t iterations = 0;  // negative: until exact
  Emission emission = Emission::Calibrated;  // else iterations must be 0 and v null
  bool hard_reset = false;
  double v_reset = 0;
  bool half_theta_init = true;  // v(0) = θ/2; v_init is then unused

  const void* x = nullptr;
  Layout x_layout;
  int64_t x_time = 0;  // stride of time; 0: static input, read once
  void* spikes = nullptr;
  Layout spikes_layout;
  int64_t spikes_time = 0;

  Parameter theta, v_init;

  // Results by neuron, all in one layout; null where not wanted. v and v_init_out hold the state type.
  Layout result_layout;
  void* v = nullptr;
  int32_t* count = nullptr;  // of the T emitted steps; of the rho watched ones where steps is 0
  void* v_init_out = nullptr;
  int32_t* offset = nullptr;
};

// The order in which the neurons are walked: the order of `strides` in memory, outermost first (stable).
inline std::vector<int> walk_order(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  std::vector<int> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return strides[a] > strides[b]; });
  return order;
}

inline Layout make_layout(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                          const std::vector<int>& order) {
  Layout layout;
  for (int dim : order) {
    if (sizes[dim] == 1) continue;
    const int last = layout.ndim - 1;
    if (last >= 0 && layout.stride[last] == strides[dim] * sizes[dim]) {
      layout.size[last] *= sizes[dim];
      layout.stride[last] = strides[dim];
    } else {
      if (layout.ndim == kMaxDims) throw std::invalid_argument("more than 16 neuron dimensions that cannot be merged");
      layout.size[layout.ndim] = sizes[dim];
      layout.stride[layout.ndim++] = strides[dim];
    }
  }
  if (layout.ndim == 0) {  // a single neuron: one element, dense
    layout.ndim = 1;
    layout.size[0] = 1;
    layout.stride[0] = 1;
  }
  return layout;
}

}  // namespace cos_ext
