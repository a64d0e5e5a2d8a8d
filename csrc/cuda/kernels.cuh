// The CUDA kernels and which of them serves a job: a thread owns the neurons of one 16-byte load (or one neuron where memory is
// irregular, or a window of 2 x 2), does their whole calibration and simulation (pack.cuh), and keeps rows of inputs in registers
// (rows.cuh). task.h says what a kernel is told. No torch headers here.
#pragma once

#include <cstdint>

#include "../core/dtypes.h"
#include "../core/neuron.h"
#include "memory.cuh"
#include "pack.cuh"
#include "rows.cuh"
#include "task.h"

namespace cos_ext::cuda {

// Small blocks: a layer of 2^16 neurons then still fills an H100 or H200.
constexpr int kThreads = 128;

// Blocks that a multiprocessor must be able to hold: more than the compiler leaves room for where it would take registers that
// pay less, and where fewer keep too few bytes in flight.
template <class T, int V, int Rows, Mode M, Extra E>
constexpr int blocks_at_least() {
  if (V == 1 && sizeof(T) == 2) return Rows > 16 ? 4 : 5;
  if (E != Extra::Plain || sizeof(T) != 4 || M == Mode::Reread) return 2;
  if (V == 1) return 8;
  return Rows == 16 ? 4 : Rows == 8 ? (M == Mode::Held ? 6 : 7) : 2;
}

// OneTheta: θ is the same for the whole pack (Fetch::Value or Fetch::One) and takes one register.
template <class T, int V, int Rows, Mode M, bool OneTheta, Extra E = Extra::Plain>
__global__ void __launch_bounds__(kThreads, (blocks_at_least<T, V, Rows, M, E>())) run(const __grid_constant__ Task task) {
  using S = state_t<T>;
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t start = E == Extra::Window ? pack : pack * V;
  if (start >= task.neurons) return;
  const auto at = place<kOperandsOf<E>>(task.walk, start);
  if constexpr (E == Extra::Window) {
    PerLane<S, V> theta;
    get_window(theta.values, task.theta, at[kTheta]);
    run_pack<T, V, Rows, M, E>(task, start, at, theta);
  } else if constexpr (OneTheta) {
    S theta[1];
    get(theta, task.theta, task, kTheta, start, at[kTheta]);
    run_pack<T, V, Rows, M, E>(task, start, at, Uniform<S, V>{theta[0]});
  } else {
    PerLane<S, V> theta;
    get(theta.values, task.theta, task, kTheta, start, at[kTheta]);
    run_pack<T, V, Rows, M, E>(task, start, at, theta);
  }
}

// The one place that launches; tests/cpp/cuda_shim.h replaces it to run the kernels on the host.
#ifndef COS_CUDA_LAUNCH
#define COS_CUDA_LAUNCH(kernel, blocks, stream, ...) kernel<<<blocks, kThreads, 0, stream>>>(__VA_ARGS__)
#endif

using Kernel = void (*)(Task);

// The kernel of a task, by what it has to keep in registers.
template <class T, int V, bool OneTheta, Extra E>
Kernel choose(const Task& task) {
  const bool fires = task.rho == 0 || task.emission == Emission::Rate;
  constexpr int kMany = V == 1 && sizeof(T) == 2 ? 16 : 8;  // two bytes at a time, more of them
  if constexpr (E != Extra::Plain) {  // fewer kernels
    if (fires) return run<T, V, kMany, Mode::Fire, OneTheta, E>;
    constexpr int kAgain = kMany == 16 ? 20 : 8;  // room for one block less
    return task.rho <= kMany ? run<T, V, kMany, Mode::Held, OneTheta, E> : run<T, V, kAgain, Mode::Reread, OneTheta, E>;
  } else if constexpr (V == 1) {  // irregular memory: many rows in flight, fewer kernels
    if (fires) return run<T, V, kMany, Mode::Fire, OneTheta>;
    return task.rho <= 16 ? run<T, V, 16, Mode::Held, OneTheta> : run<T, V, kMany, Mode::Reread, OneTheta>;
  } else {
    if (fires) return task.steps <= 4 ? run<T, V, 4, Mode::Fire, OneTheta> : run<T, V, 8, Mode::Fire, OneTheta>;
    if (task.rho > 16) return run<T, V, 8, Mode::Reread, OneTheta>;
    if (task.rho <= 4) return run<T, V, 4, Mode::Held, OneTheta>;
    return task.rho <= 8 ? run<T, V, 8, Mode::Held, OneTheta> : run<T, V, 16, Mode::Held, OneTheta>;
  }
}
template <class T, int V, Extra E>
Kernel choose_theta(const Task& task, bool packed) {
  const bool one = task.theta.fetch == Fetch::Value || task.theta.fetch == Fetch::One;
  return !packed ? choose<T, 1, true, E>(task) : one ? choose<T, V, true, E>(task) : choose<T, V, false, E>(task);
}

// Launches the job of storage type T. Outputs larger than `cache` bytes are stored past the L2 cache.
template <class T, class Stream>
void launch_as(const Job& job, Stream stream, int64_t cache) {
  constexpr int V = 16 / sizeof(T);
  Task task;
  int64_t packs;
  Kernel kernel;
  if (job.pool.rows) {
    make_window_task(task, job);
    kernel = choose<T, 4, false, Extra::Window>(task);
    packs = task.neurons;
  } else {
    const bool packed = make_task(task, job, V, sizeof(T), sizeof(state_t<T>));
    if (!packed) make_task(task, job, 1, sizeof(T), sizeof(state_t<T>));
    kernel = job.fused() || job.tally ? choose_theta<T, V, Extra::Fused>(task, packed)
                                      : choose_theta<T, V, Extra::Plain>(task, packed);
    packs = packed ? job.neurons / V : job.neurons;
  }
  task.streaming = job.neurons * job.steps * static_cast<int64_t>(sizeof(T)) > cache;
  COS_CUDA_LAUNCH(kernel, static_cast<unsigned>((packs + kThreads - 1) / kThreads), stream, task);
}

template <class Stream>
void launch(const Job& job, Stream stream, int64_t cache) {
  switch (job.dtype) {
    case DType::Float32: return launch_as<float>(job, stream, cache);
    case DType::Float64: return launch_as<double>(job, stream, cache);
    case DType::Float16: return launch_as<Half>(job, stream, cache);
    case DType::BFloat16: return launch_as<BFloat16>(job, stream, cache);
  }
}

}  // namespace cos_ext::cuda
