// Backpropagation through time on CUDA devices: a thread owns the neurons of a pack, as in pack.cuh, computes their potentials
// again from x and walks them backwards. The arithmetic is csrc/core's. No torch headers here.
//
// Potentials stay in registers, kChunk steps of them. Longer simulations are cut into chunks of as many steps: a first pass over
// x leaves v at every chunk's start in memory, a second one takes the chunks from the last to the first. So x is read twice, and
// v takes a row of memory a chunk.
#pragma once

#include <cstdint>

#include "../core/surrogate.h"
#include "kernels.cuh"

namespace cos_ext::cuda {

constexpr int kChunk = 8;

// Elements, of the state type, of the room for v at the starts of chunks. The last chunk's is in registers.
inline int64_t starts_size(const Job& job) { return (job.steps - 1) / kChunk * job.neurons; }

// The gradient of the spikes, many rows of it in flight.
template <class T, int V, int Rows>
struct Sent {
  word_t<T, V> rows[Rows];

  __device__ __forceinline__ Sent(const Task& task, int64_t offset, int32_t first) {
    const T* from = static_cast<const T*>(task.sent) + offset + first * task.sent_time;
    COS_UNROLL
    for (int j = 0; j < Rows; ++j, from += task.sent_time) {
      if (first + j < task.steps) rows[j] = load_word<false>(reinterpret_cast<const word_t<T, V>*>(from));
    }
  }
};

template <class T, int V>
struct Lanes {
  T lanes[V];
};

// As blocks_at_least().
template <class T, int V, int Rows, Extra E>
constexpr int back_blocks_at_least() {
  if (V == 1) return sizeof(T) == 2 ? 5 : 2;
  return E == Extra::Plain && sizeof(T) * Rows == (sizeof(T) == 2 ? 8 : 32) ? 3 : 2;
}

// Rows: the chunk, or at least task.steps.
template <class T, int V, int Rows, bool Hard, class Phi, Extra E>
__global__ void __launch_bounds__(kThreads, (back_blocks_at_least<T, V, Rows, E>()))
    run_back(const __grid_constant__ Task task, const __grid_constant__ Phi phi) {
  using S = state_t<T>;
  using Reset = std::conditional_t<Hard, HardReset<S>, SoftReset>;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (start >= task.neurons) return;
  const auto at = place<kAllOperands>(task.walk, start);
  const S v_reset = static_cast<S>(task.v_reset);
  Reset reset;
  if constexpr (Hard) reset.v_reset = v_reset;
  S theta[V], v[V];
  get(theta, task.theta, task, kTheta, start, at[kTheta]);
  get(v, task.v_init, task, kVInit, start, at[kVInit]);

  const T* const x = static_cast<const T*>(task.x) + at[kX];
  const int32_t last = (task.steps - 1) / Rows * Rows;  // where the last chunk starts
  S* const starts = static_cast<S*>(task.starts) + start;
  if (Rows == kChunk && last > 0) {
    Inputs<T, V, Rows, Mode::Reread, E, kAllOperands> in{x, task.x_time, task, start, at, {}};
    for (int32_t first = 0; first < last; first += Rows) {
      store_run(v, starts, first / Rows * task.neurons);
      in.fetch(first, last);
      COS_UNROLL
      for (int j = 0; j < Rows; ++j) {
        const auto row = in.held(j);
        COS_UNROLL
        for (int i = 0; i < V; ++i) {
          S m;
          step(v[i], row(i), theta[i], reset, m);
        }
      }
    }
  }

  const bool once = task.x_time == 0;
  T* const out = static_cast<T*>(task.spikes) + at[kSpikes];
  S inverse[V], d[V] = {}, of_theta[V] = {}, sum[V] = {};  // sum: of d
  COS_UNROLL
  for (int i = 0; i < V; ++i) inverse[i] = S(1) / theta[i];
  Inputs<T, V, Rows, Mode::Fire, E, kAllOperands> in{x, task.x_time, task, start, at, {}};
  COS_NO_UNROLL
  for (int32_t first = last; first >= 0; first -= Rows) {
    in.fetch(first, task.steps);
    const Sent<T, V, Rows> sent(task, at[kSent], first);
    if (first < last) load_run(v, starts + first / Rows * task.neurons);
    S m[Rows][V];
    COS_UNROLL
    for (int j = 0; j < Rows; ++j) {
      if (first + j >= task.steps) continue;
      const auto row = in.held(j);
      COS_UNROLL
      for (int i = 0; i < V; ++i) step(v[i], row(i), theta[i], reset, m[j][i]);
    }
    COS_UNROLL
    for (int j = Rows - 1; j >= 0; --j) {
      if (first + j >= task.steps) continue;
      const auto g = bit_cast<Lanes<T, V>>(sent.rows[j]);
      Lanes<T, V> row;
      COS_UNROLL
      for (int i = 0; i < V; ++i) {
        step_back<Hard>(m[j][i], theta[i], inverse[i], v_reset, phi, task.detach_reset, to_state(g.lanes[i]), d[i], of_theta[i]);
        sum[i] += d[i];
        row.lanes[i] = FromState<T>::call(d[i]);
      }
      if (!once) {
        store_word(reinterpret_cast<word_t<T, V>*>(out + (first + j) * task.spikes_time), bit_cast<word_t<T, V>>(row.lanes),
                   task.streaming);
      }
    }
  }
  if (once) {
    Lanes<T, V> row;
    COS_UNROLL
    for (int i = 0; i < V; ++i) row.lanes[i] = FromState<T>::call(sum[i]);
    store_word(reinterpret_cast<word_t<T, V>*>(out), bit_cast<word_t<T, V>>(row.lanes), task.streaming);
  }
  store_run(of_theta, task.of_theta, at[kResult]);
  store_run(d, task.of_v_init, at[kResult]);
  store_run(sum, task.of_bias, at[kResult]);
}

template <class T, bool Hard, class Phi>
auto choose_back(const Job& job, bool packed) {
  constexpr int V = 16 / sizeof(T);
  if (job.fused()) {  // fewer kernels
    return packed ? run_back<T, V, kChunk, Hard, Phi, Extra::Fused> : run_back<T, 1, kChunk, Hard, Phi, Extra::Fused>;
  }
  if (!packed) return run_back<T, 1, kChunk, Hard, Phi, Extra::Plain>;
  return job.steps <= 4 ? run_back<T, V, 4, Hard, Phi, Extra::Plain> : run_back<T, V, kChunk, Hard, Phi, Extra::Plain>;
}

template <class T, class Phi, class Stream>
void launch_back_with(const Job& job, void* starts, Stream stream, int64_t cache) {
  constexpr int V = 16 / sizeof(T);
  Task task;
  const bool packed = make_task(task, job, V, sizeof(T), sizeof(state_t<T>));
  if (!packed) make_task(task, job, 1, sizeof(T), sizeof(state_t<T>));
  task.starts = starts;
  task.streaming = job.neurons * job.steps * static_cast<int64_t>(sizeof(T)) > cache;
  const auto kernel = job.hard_reset ? choose_back<T, true, Phi>(job, packed) : choose_back<T, false, Phi>(job, packed);
  const int64_t packs = packed ? job.neurons / V : job.neurons;
  COS_CUDA_LAUNCH(kernel, static_cast<unsigned>((packs + kThreads - 1) / kThreads), stream, task, Phi(job.gradients.alpha));
}

template <class T, class Stream>
void launch_back_as(const Job& job, void* starts, Stream stream, int64_t cache) {
  using S = state_t<T>;
  switch (job.gradients.surrogate) {
    case Surrogate::ATan: return launch_back_with<T, ATan<S>>(job, starts, stream, cache);
    case Surrogate::Sigmoid: return launch_back_with<T, Sigmoid<S>>(job, starts, stream, cache);
    case Surrogate::Triangle: return launch_back_with<T, Triangle<S>>(job, starts, stream, cache);
    case Surrogate::Rectangle: return launch_back_with<T, Rectangle<S>>(job, starts, stream, cache);
    case Surrogate::FastSigmoid: return launch_back_with<T, FastSigmoid<S>>(job, starts, stream, cache);
  }
}

// Backpropagation of a job. `starts` has room for starts_size(job) potentials.
template <class Stream>
void launch_back(const Job& job, void* starts, Stream stream, int64_t cache) {
  switch (job.dtype) {
    case DType::Float32: return launch_back_as<float>(job, starts, stream, cache);
    case DType::Float64: return launch_back_as<double>(job, starts, stream, cache);
    case DType::Float16: return launch_back_as<Half>(job, starts, stream, cache);
    case DType::BFloat16: return launch_back_as<BFloat16>(job, starts, stream, cache);
  }
}

}  // namespace cos_ext::cuda
