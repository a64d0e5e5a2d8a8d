// What a CUDA kernel is told: a Job turned into one walk that serves all operands, with divisions made multiplications.
// Host code but for Divider::divide; no torch, no arithmetic of neurons. Which kernel serves a job is decided in kernels.cuh.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <vector>

#include "../core/macros.h"
#include "../core/statistics.h"
#include "../job.h"

namespace cos_ext::cuda {

// floor(n / size) for 0 <= n < 2^63 and size >= 2 by one multiplication: with c = ceil(log2(size)) and
// magic = ceil(2^(63+c) / size), n·magic exceeds n·2^(63+c) / size by less than 2^(63+c) / size (Granlund, Montgomery 1994).
struct Divider {
  int64_t size = 1;
  uint64_t magic = 0;
  int32_t shift = 0;

  static Divider by(int64_t size) {
    Divider divider;
    int c = 1;
    while (c < 62 && (int64_t{1} << c) < size) ++c;
    const auto wide = static_cast<unsigned __int128>(1) << (63 + c);
    divider.size = size;
    divider.magic = static_cast<uint64_t>((wide + static_cast<uint64_t>(size) - 1) / static_cast<uint64_t>(size));
    divider.shift = c - 1;
    return divider;
  }
  COS_HD int64_t divide(int64_t n) const {
#if defined(__CUDA_ARCH__)
    return static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(n), magic) >> shift);
#else
    return static_cast<int64_t>(static_cast<uint64_t>((static_cast<unsigned __int128>(n) * magic) >> 64) >> shift);
#endif
  }
};

// The first kPlain are those of every kernel, kOperands those of kernels with a fused input. The others have a fourth group:
// backpropagation, where kSpikes is the gradient of x and kSent that of the spikes, and general neurons.
enum Operand {
  kX,
  kSpikes,
  kTheta,
  kVInit,
  kResult,
  kPlain,
  kScale = kPlain,
  kBias,
  kResidual,
  kOperands,
  kSent = kOperands,
  kEmitted = kOperands,
  kStepBias,
  kAllOperands
};

// The neurons as one index space, innermost dimension last, and every operand's strides in it.
struct Walk {
  int32_t ndim = 0;
  Divider dims[kMaxDims];
  int64_t stride[kAllOperands][kMaxDims] = {};
};

// Cuts the index space wherever a dimension of any operand ends. Their layouts are merged from the same dimensions in the
// same order, so that the cuts nest.
inline Walk make_walk(const Layout* const (&layouts)[kAllOperands]) {
  std::vector<int64_t> cuts{1};
  for (const Layout* layout : layouts) {
    int64_t inside = 1;
    for (int d = layout->ndim - 1; d >= 0; --d) cuts.push_back(inside *= layout->size[d]);
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  if (cuts.size() > kMaxDims + 1) throw std::invalid_argument("more than 16 neuron dimensions that cannot be merged");
  Walk walk;
  walk.ndim = static_cast<int32_t>(cuts.size()) - 1;
  for (int d = 0; d < walk.ndim; ++d) {
    const int64_t inside = cuts[walk.ndim - 1 - d], end = cuts[walk.ndim - d];
    walk.dims[d] = Divider::by(end / inside);
    for (int operand = 0; operand < kAllOperands; ++operand) {
      const Layout& layout = *layouts[operand];
      int64_t own = 1;
      for (int i = layout.ndim - 1; i >= 0 && own <= inside; own *= layout.size[i--]) {
        if (own * layout.size[i] >= end) walk.stride[operand][d] = layout.stride[i] * (inside / own);
      }
    }
  }
  return walk;
}

// How a thread finds the values of θ or v_init for the neurons of its pack.
enum class Fetch : int32_t {
  HalfTheta,  // v_init only: θ/2
  Value,      // one number for all neurons
  One,        // one element for the whole pack
  Run,        // as many elements, neighbours in memory
  Split       // two elements: the pack may cross into the next one once
};

struct Source {
  const void* data = nullptr;
  double value = 0;
  Fetch fetch = Fetch::Value;
  Divider run;  // Split: how many neurons share an element
  int64_t across = 0, down = 0;  // in windows: from a lane to the next, from the upper two to the lower two
};

struct Task {
  int64_t neurons = 0;
  int32_t steps = 0, rho = 0, iterations = 0;  // at most 2^24 steps (checks.h)
  Emission emission = Emission::Calibrated;
  bool hard_reset = false;
  bool streaming = false;  // the spikes do not fit into the L2 cache: store them past it
  double v_reset = 0;
  const void* x = nullptr;
  int64_t x_time = 0;
  void* spikes = nullptr;
  int64_t spikes_time = 0;
  Source theta, v_init, scale, bias, emitted, step_bias;
  const void* residual = nullptr;
  int64_t residual_time = 0;
  // Windows of 2 x 2: from a lane of x or of the residual to the next, and to the lower two.
  int64_t x_across = 0, x_down = 0, residual_across = 0, residual_down = 0;
  int64_t* tally = nullptr;
  int32_t slots = 1, tally_row = 0;
  void* v = nullptr;
  int32_t* count = nullptr;
  void* v_init_out = nullptr;
  int32_t* offset = nullptr;
  // Of backpropagation.
  const void* sent = nullptr;
  int64_t sent_time = 0;
  bool detach_reset = false;
  void* of_theta = nullptr;
  void* of_v_init = nullptr;
  void* of_bias = nullptr;
  void* starts = nullptr;  // room for potentials, learning.cuh
  Walk walk;
};

inline bool aligned(const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Whether every pack of `lanes` neurons is a run of neighbours that starts at a multiple of `lanes` elements.
inline bool runs(const Layout& layout, int64_t lanes) {
  const int last = layout.ndim - 1;
  if (last < 0 || layout.stride[last] != 1 || layout.size[last] % lanes) return false;
  for (int d = 0; d < last; ++d) {
    if (layout.stride[d] % lanes) return false;
  }
  return true;
}

// Fills `source`; false where packs of this width cannot be served.
inline bool make_source(Source& source, const Parameter& parameter, int64_t lanes, int64_t bytes) {
  source.data = parameter.data;
  source.value = parameter.value;
  source.fetch = parameter.data ? Fetch::One : Fetch::Value;
  const Layout& layout = parameter.layout;
  if (!parameter.data || layout.ndim == 0 || lanes == 1) return true;
  const int64_t size = layout.size[layout.ndim - 1], stride = layout.stride[layout.ndim - 1];
  if (stride == 0 && size % lanes == 0) return true;
  if (runs(layout, lanes) && aligned(parameter.data, 16 < bytes ? 16 : bytes)) {
    source.fetch = Fetch::Run;
    return true;
  }
  source.fetch = Fetch::Split;
  source.run = Divider::by(size < 2 ? 2 : size);
  return stride == 0 && (size >= lanes || 2 * size == lanes);  // a pack starts at a multiple of its size
}

// What does not depend on how memory is walked.
inline void describe(Task& task, const Job& job) {
  task.steps = static_cast<int32_t>(job.steps);
  task.rho = static_cast<int32_t>(job.rho);
  // More rounds than rho are never needed.
  task.iterations = static_cast<int32_t>(job.iterations < 0 ? -1 : std::min(job.iterations, job.rho));
  task.emission = job.emission;
  task.hard_reset = job.hard_reset;
  task.v_reset = job.v_reset;
  task.x = job.x;
  task.x_time = job.x_time;
  task.spikes = job.spikes;
  task.spikes_time = job.spikes_time;
  task.residual = job.residual;
  task.residual_time = job.residual_time;
  task.v = job.v;
  task.count = job.count;
  task.v_init_out = job.v_init_out;
  task.offset = job.offset;
  task.sent = job.gradients.sent;
  task.sent_time = job.gradients.sent_time;
  task.detach_reset = job.gradients.detach_reset;
  task.of_theta = job.gradients.theta;
  task.of_v_init = job.gradients.v_init;
  task.of_bias = job.gradients.bias;
  task.tally = job.tally;
  task.slots = static_cast<int32_t>(job.slots);
  task.tally_row = static_cast<int32_t>(tally_size(job.rho));
  if (!task.scale.data) task.scale.value = 1;
}

// The task of a job for packs of `lanes` neurons of `bytes` each, `state` bytes in the state type; false where memory is not
// regular enough for packs (never for lanes = 1).
inline bool make_task(Task& task, const Job& job, int64_t lanes, int64_t bytes, int64_t state) {
  static const Layout nothing;
  const Gradients& back = job.gradients;
  const void* by_neuron[] = {job.v, job.count, job.v_init_out, job.offset, back.theta, back.v_init, back.bias};
  const bool results = std::any_of(std::begin(by_neuron), std::end(by_neuron), [](const void* result) { return result; });
  if (lanes > 1) {
    const auto fits = [&](const void* data, const Layout& layout, int64_t time, int64_t rows) {
      return aligned(data, lanes * bytes) && runs(layout, lanes) && (rows <= 1 || time % lanes == 0);
    };
    const int64_t rows = std::max(job.steps, job.rho);
    if (job.neurons % lanes || !fits(job.x, job.x_layout, job.x_time, rows)) return false;
    if (job.spikes && !fits(job.spikes, job.spikes_layout, job.spikes_time, job.steps)) return false;
    if (job.residual && !fits(job.residual, job.residual_layout, job.residual_time, rows)) return false;
    if (back.sent && !fits(back.sent, back.sent_layout, back.sent_time, rows)) return false;
    if (results && !runs(job.result_layout, lanes)) return false;
    for (const void* result : by_neuron) {
      if (!aligned(result, 16)) return false;
    }
  }
  const bool found =
      make_source(task.theta, job.theta, lanes, lanes * state) && make_source(task.v_init, job.v_init, lanes, lanes * state) &&
      make_source(task.scale, job.scale, lanes, lanes * state) && make_source(task.bias, job.bias, lanes, lanes * state) &&
      make_source(task.emitted, job.general.emitted, lanes, lanes * state) &&
      make_source(task.step_bias, job.general.bias, lanes, lanes * state);
  if (!found) return false;
  const bool stepped = task.step_bias.fetch == Fetch::Run;  // a row of it at every step
  if (stepped && job.general.bias_time % lanes) return false;
  if (job.half_theta_init) task.v_init.fetch = Fetch::HalfTheta;
  task.neurons = job.neurons;
  describe(task, job);
  const Layout* layouts[kAllOperands] = {&job.x_layout,
                                         job.spikes ? &job.spikes_layout : &nothing,
                                         job.theta.data ? &job.theta.layout : &nothing,
                                         job.v_init.data && !job.half_theta_init ? &job.v_init.layout : &nothing,
                                         results ? &job.result_layout : &nothing,
                                         job.scale.data ? &job.scale.layout : &nothing,
                                         job.bias.data ? &job.bias.layout : &nothing,
                                         job.residual ? &job.residual_layout : &nothing,
                                         back.sent                  ? &back.sent_layout
                                         : job.general.emitted.data ? &job.general.emitted.layout
                                                                    : &nothing,
                                         job.general.bias.data ? &job.general.bias.layout : &nothing};
  task.walk = make_walk(layouts);
  return true;
}

// An operand's layout over windows of 2 x 2 instead of neurons [outer, height, width, inner], and its steps inside a window.
inline Layout over_windows(const Layout& layout, const Pool& pool, int64_t& across, int64_t& down) {
  across = down = 0;
  const int64_t cuts[] = {pool.inner, pool.inner * pool.width, pool.inner * pool.width * pool.height, INT64_MAX};
  Layout reversed;
  const auto push = [&](int64_t size, int64_t stride) {
    if (size == 1) return;
    if (reversed.ndim == kMaxDims) throw std::invalid_argument("more than 16 neuron dimensions that cannot be merged");
    reversed.size[reversed.ndim] = size;
    reversed.stride[reversed.ndim++] = stride;
  };
  int64_t inside = 1;  // neurons that one element of this dimension spans
  for (int d = layout.ndim - 1; d >= 0; --d) {
    int64_t size = layout.size[d], stride = layout.stride[d];
    for (const int64_t cut : cuts) {
      if (inside >= cut || size == 1) continue;
      const int64_t part = cut == INT64_MAX ? size : std::min(size, cut / inside);
      if (cut == cuts[1]) {
        across = stride;
        push(part / 2, stride * 2);
      } else if (cut == cuts[2]) {
        down = stride;
        push(part / 2, stride * 2);
      } else {
        push(part, stride);
      }
      inside *= part;
      size /= part;
      stride *= part;
    }
  }
  Layout made;
  made.ndim = reversed.ndim;
  for (int d = 0; d < made.ndim; ++d) {
    made.size[d] = reversed.size[made.ndim - 1 - d];
    made.stride[d] = reversed.stride[made.ndim - 1 - d];
  }
  return made;
}

// The task of a job that pools 2 x 2: a thread owns a window.
inline void make_window_task(Task& task, const Job& job) {
  const Pool& pool = job.pool;
  const auto source = [&](Source& made, const Parameter& parameter) {
    made.data = parameter.data;
    made.value = parameter.value;
    made.fetch = parameter.data ? Fetch::One : Fetch::Value;
    return parameter.data ? over_windows(parameter.layout, pool, made.across, made.down) : Layout{};
  };
  const Layout x = over_windows(job.x_layout, pool, task.x_across, task.x_down);
  const Layout theta = source(task.theta, job.theta);
  Layout v_init = source(task.v_init, job.v_init);
  if (job.half_theta_init) {
    task.v_init.fetch = Fetch::HalfTheta;
    v_init = Layout{};
  }
  const Layout scale = source(task.scale, job.scale), bias = source(task.bias, job.bias);
  Layout residual;
  if (job.residual) residual = over_windows(job.residual_layout, pool, task.residual_across, task.residual_down);
  Layout spikes, nothing;
  spikes.ndim = 1;
  spikes.size[0] = job.neurons / 4;
  spikes.stride[0] = 1;
  task.neurons = job.neurons / 4;
  describe(task, job);
  const Layout* layouts[kAllOperands] = {&x, &spikes, &theta, &v_init, &nothing, &scale, &bias, &residual, &nothing, &nothing};
  task.walk = make_walk(layouts);
}

}  // namespace cos_ext::cuda
