// What one launch has to do: pointers, layouts and options, the only thing a kernel sees. Built by operators.h and
// python/core_module.cpp. Plain data and the host code that computes layouts; no torch, no CUDA runtime, no arithmetic of
// neurons.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace cos_ext {

// How the spikes are ordered in time: as the calibrated neuron fires (the paper's), or planned (core/emission.h). Rate: no spikes
// but their mean over rho steps, θ C*/rho, from an input that is the mean current over them.
enum class Emission : int32_t { Calibrated, Even, Front, Block, Rate };

// core/surrogate.h has their formulas.
enum class Surrogate : int32_t { ATan, Sigmoid, Triangle, Rectangle, FastSigmoid };

enum class DType : int32_t { Float32, Float64, Float16, BFloat16 };

constexpr int kMaxDims = 16;

// Spikes of one level as bits, [steps, pixels, words(channels)] of neurons that are [pixels, channels] in the walk's order:
// channel c in bit c % 64 of word c / 64. On a CPU alone.
struct BitPlanes {
  uint64_t* data = nullptr;  // null: there are none
  int64_t time = 0;  // stride of time, in words
};
inline int64_t words(int64_t channels) { return (channels + 63) / 64; }

// The neurons of one operand, in walk order (innermost last), merged where neighbours in the walk are neighbours in memory.
// Strides in elements. ndim 0: one value serves every neuron.
struct Layout {
  int32_t ndim = 0;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};

  bool dense() const { return ndim == 1 && stride[0] == 1; }
};

// θ, v_init, scale or bias: `data` in the state type, or, where it is null, `value` (scale and bias: there is none).
struct Parameter {
  const void* data = nullptr;
  Layout layout;
  double value = 0;
};

// Average pooling of the spikes over windows of rows x columns that do not overlap; 0: none. In memory the neurons are then
// [outer, height, width, inner] in the walk's order, and `spikes` is [outer, height / rows, width / columns, inner], dense.
struct Pool {
  int64_t rows = 0, columns = 0;
  int64_t height = 0, width = 0, inner = 1;
  int64_t unit() const { return rows * width * inner; }  // neurons that make up whole windows
};

// What backpropagation through the neurons (core/surrogate.h) is told beside. The gradient of x goes to Job::spikes; where x has
// no stride of time it is one for all steps. That of a residual is that of x. There may be a bias, but no scale.
struct Gradients {
  Surrogate surrogate = Surrogate::ATan;
  double alpha = 1;
  bool detach_reset = false;
  const void* sent = nullptr;  // of what is sent, θ s(t); null: the job is no backpropagation
  Layout sent_layout;
  int64_t sent_time = 0;
  // By neuron, in Job::result_layout and the state type; null where not wanted.
  void* theta = nullptr;
  void* v_init = nullptr;
  void* bias = nullptr;
};

// What makes a neuron a general one (core/general.h); numbers in its words.
struct General {
  bool on = false;
  double s_min = 0, s_max = 1, n_min = -INFINITY, n_max = INFINITY;
  double upper = 1, lower = INFINITY, leak = 1, ratio = 0.75;
  bool strict = true, gated = false, prediction = false;
  int32_t rungs = 0;  // 0: levels, no ladder
  int64_t silent = 0;  // steps before the first spike
  Parameter emitted;  // the value of one level; without data: θ
  Parameter bias;  // b(t), in the state type; without data: 0
  int64_t bias_time = 0;
  const double* scales = nullptr;  // what θ is multiplied by at every step; null: 1
};

constexpr int64_t kMaxFusedSteps = 4096;

struct Job {
  DType dtype = DType::Float32;
  int64_t neurons = 0;
  int64_t steps = 0;  // T to emit; 0: calibration only
  int64_t rho = 0;  // steps to watch; 0: no calibration
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

  // The neurons' current is x · scale + bias + residual, rounded to the storage type after the bias and after the residual: what
  // separate passes would have written. At most kMaxFusedSteps steps.
  Parameter scale, bias;
  const void* residual = nullptr;
  Layout residual_layout;
  int64_t residual_time = 0;  // 0: the same at every step
  bool fused() const { return scale.data || bias.data || residual || residual_bits.data; }
  // The residual of one level instead, a value of the storage type.
  BitPlanes residual_bits;
  const void* residual_level = nullptr;

  Pool pool;
  BitPlanes bits;  // of the spikes, instead of `spikes`
  int64_t channels = 1;  // of bits

  // Results by neuron, all in one layout; null where not wanted. v and v_init_out hold the state type.
  Layout result_layout;
  void* v = nullptr;
  int32_t* count = nullptr;  // of the T emitted steps; of the rho watched ones where steps is 0
  void* v_init_out = nullptr;
  int32_t* offset = nullptr;

  Gradients gradients;
  General general;

  // Sums over the neurons (core/statistics.h), added to [slots, tally_size(rho)]: where many add at once, to several rows.
  // Null: none.
  int64_t* tally = nullptr;
  int64_t slots = 1;
};

// The order in which the neurons are walked: the order of `strides` in memory, outermost first (stable).
inline std::vector<int> walk_order(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  std::vector<int> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return strides[a] > strides[b]; });
  return order;
}

inline Layout make_layout(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, const std::vector<int>& order) {
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
