// What a thread does for its pack: start, calibration, simulation, results and sums. The arithmetic is csrc/core's; which kernel
// a pack runs in is kernels.cuh's. No torch headers here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/calibration.h"
#include "../core/dtypes.h"
#include "../core/emission.h"
#include "../core/neuron.h"
#include "../core/statistics.h"
#include "memory.cuh"
#include "rounds.cuh"
#include "rows.cuh"
#include "task.h"

namespace cos_ext::cuda {

// Adds over the warp, to one of several rows of sums: one address would be too few for all blocks of a launch.
__device__ __forceinline__ void add_to(int64_t* sum, int64_t value) {
  auto* const to = reinterpret_cast<unsigned long long*>(sum);
  if (__activemask() == 0xffffffffu) {
    COS_UNROLL
    for (int other = 16; other; other >>= 1) value += __shfl_xor_sync(0xffffffffu, value, other);
    if ((threadIdx.x & 31) == 0 && value) atomicAdd(to, static_cast<unsigned long long>(value));
  } else if (value) {
    atomicAdd(to, static_cast<unsigned long long>(value));
  }
}
__device__ __forceinline__ void add_one(int64_t* sum) { atomicAdd(reinterpret_cast<unsigned long long*>(sum), 1ull); }

// Counts as integers, from floats where those are faster.
template <class N, int V>
struct Integers {
  int32_t lanes[V];
  __device__ __forceinline__ explicit Integers(const N (&counts)[V]) {
    COS_UNROLL
    for (int i = 0; i < V; ++i) lanes[i] = static_cast<int32_t>(counts[i]);
  }
};

template <class S, int V, class N, class Theta>
__device__ __forceinline__ void tally_watch(const Task& task, const Watch<S, V, N>& w, const S (&v_init)[V], const Theta& theta,
                                            const int32_t (&psi)[V], const int32_t (&count)[V]) {
  int64_t* const histogram = task.tally + (blockIdx.x % task.slots) * task.tally_row + task.rho;
  int64_t* const sums = histogram + task.rho + 1;
  int64_t clipping = 0, quantisation = 0;
  int32_t near[3] = {};  // ψ = -1, 0, 1: nearly all
  COS_UNROLL
  for (int i = 0; i < V; ++i) {
    const ErrorSplit error = error_split(w.v[i], v_init[i], theta[i], count[i], psi[i], task.rho);
    clipping += error.clipping;
    quantisation += error.quantisation;
    if (error.unbounded) add_one(sums + kTallyUnbounded);  // seldom: no register is kept for it
    COS_UNROLL
    for (int j = 0; j < 3; ++j) near[j] += psi[i] == j - 1;
    if (psi[i] > 1 || psi[i] < -1) add_one(histogram + psi[i]);
  }
  COS_UNROLL
  for (int j = 0; j < 3; ++j) add_to(histogram + j - 1, near[j]);
  add_to(sums + kTallyClipping, clipping);
  add_to(sums + kTallyQuantisation, quantisation);
}
template <int V>
__device__ __forceinline__ void tally_emission(const Task& task, const int32_t (&count)[V]) {
  int64_t* const sums = task.tally + (blockIdx.x % task.slots) * task.tally_row + 2 * task.rho + 1;
  int64_t spikes = 0;
  int32_t silent = 0, saturated = 0;
  COS_UNROLL
  for (int i = 0; i < V; ++i) {
    spikes += count[i];
    silent += count[i] == 0;
    saturated += count[i] == task.steps;
  }
  add_to(sums + kTallySpikes, spikes);
  add_to(sums + kTallySilent, silent);
  add_to(sums + kTallySaturated, saturated);
}

template <class T, int V, int Rows, Mode M, Extra E, class Theta>
__device__ __forceinline__ void run_pack(const Task& task, int64_t start, const Place<kOperandsOf<E>>& at, const Theta& theta) {
  using S = state_t<T>;
  Inputs<T, V, Rows, M, E> in{static_cast<const T*>(task.x) + at[kX], task.x_time, task, start, at, {}};
  const bool planned = M != Mode::Fire && task.emission != Emission::Calibrated;  // needs the first rho inputs alone
  if (M == Mode::Held) in.fetch(0, task.steps > task.rho && !planned ? task.steps : task.rho);
  S v[V];
  if (task.v_init.fetch == Fetch::HalfTheta) {
    COS_UNROLL
    for (int i = 0; i < V; ++i) v[i] = theta[i] / 2;
  } else if constexpr (E == Extra::Window) {
    get_window(v, task.v_init, at[kVInit]);
  } else {
    get(v, task.v_init, task, kVInit, start, at[kVInit]);
  }
  using N = std::conditional_t<std::is_same_v<S, float>, float, int32_t>;
  using Whole = Integers<N, V>;
  N count[V], psi[V];
  if constexpr (M != Mode::Fire) {
    const auto noted = [&](const Watch<S, V, N>& w, const S(&from)[V]) {
      if (E != Extra::Plain && task.tally) tally_watch(task, w, from, theta, Whole(psi).lanes, Whole(count).lanes);
    };
    if constexpr (M == Mode::Held && V > 1) {
      calibrate_held(v, psi, count, theta, task.rho, task.iterations, in, noted);
    } else {
      const auto look = [&](Watch<S, V, N>& w, const S(&from)[V], int32_t) { watch(w, from, theta, task.rho, in); };
      using Floor = std::conditional_t<M == Mode::Held, FloorFor<S>, ByDivision>;
      calibrate<Floor>(v, psi, count, theta, task.rho, task.iterations, look, noted);
    }
    if (task.offset) store_run(Whole(psi).lanes, task.offset, at[kResult]);
    store_run(v, task.v_init_out, at[kResult]);
  }
  if (M == Mode::Fire || task.steps > 0) {
    using Stored = std::conditional_t<std::is_same_v<Theta, Uniform<S, V>>, Uniform<T, V>, PerLane<T, V>>;
    Stored stored;
    if constexpr (std::is_same_v<Theta, Uniform<S, V>>) {
      stored.value = FromState<T>::call(theta.value);
    } else {
      COS_UNROLL
      for (int i = 0; i < V; ++i) stored.values[i] = FromState<T>::call(theta[i]);
    }
    using Out = Outputs<T, V, Stored, E>;
    Out out{static_cast<T*>(task.spikes) + at[kSpikes], task.spikes_time, task.streaming, stored};
    if (M == Mode::Fire && task.emission == Emission::Rate) {
      in.fetch(0, 1);
      const auto x = in.held(0);
      typename Out::Row row = out.open(0);
      COS_UNROLL
      for (int i = 0; i < V; ++i) {
        const int32_t wanted = desired_count(x(i), v[i], theta[i], task.rho);
        row.lanes[i] = FromState<T>::call(theta[i] * static_cast<S>(wanted) / static_cast<S>(task.rho));
      }
      out.close(0, row);
      return;
    }
    if (planned) {
      int32_t desired[V], sent[V];
      COS_UNROLL
      for (int i = 0; i < V; ++i) desired[i] = Whole(count).lanes[i] + Whole(psi).lanes[i];
      task.emission == Emission::Even ? emit_planned<true>(desired, sent, task.rho, task.steps, out)
                                      : emit_planned<false>(desired, sent, task.rho, task.steps, out);
      COS_UNROLL
      for (int i = 0; i < V; ++i) count[i] = static_cast<N>(sent[i]);
    } else if (M == Mode::Fire && task.hard_reset) {
      emit<true>(v, count, theta, HardReset<S>{static_cast<S>(task.v_reset)}, task.steps, in, out);
    } else if (task.count || (E != Extra::Plain && task.tally)) {
      emit<true>(v, count, theta, SoftReset{}, task.steps, in, out);
    } else {
      emit<false>(v, count, theta, SoftReset{}, task.steps, in, out);
    }
    if (E != Extra::Plain && M != Mode::Fire && task.tally) tally_emission(task, Whole(count).lanes);
  }
  if constexpr (E != Extra::Window) {
    if (task.count) store_run(Whole(count).lanes, task.count, at[kResult]);
    store_run(v, task.v, at[kResult]);
  }
}

}  // namespace cos_ext::cuda
