// General neurons (core/general.h) on CUDA devices: a thread owns the neurons of a pack, as in pack.cuh, and reads its rows again
// where it watches them. Few kernels: what a neuron is, but for its staircase, is told at run time. No torch headers here.
#pragma once

#include <cstdint>

#include "../core/general.h"
#include "../general_rule.h"
#include "kernels.cuh"

namespace cos_ext::cuda {

// What a kernel is told beside the task.
template <class S>
struct GeneralTask {
  Rule<S> rule;
  int64_t bias_time = 0;
  const double* scales = nullptr;
  int32_t silent = 0;
};

template <class T, int V, Staircase Q, bool Predict>
struct GeneralPack {
  using S = state_t<T>;
  using At = Place<kAllOperands>;
  using In = Inputs<T, V, 8, Mode::Reread, Extra::Fused, kAllOperands>;
  struct Row {
    T lanes[V];
  };
  const Task& task;
  const GeneralTask<S>& of;
  int64_t start;
  const At& at;
  Membrane<S> membrane[V] = {};
  S theta[V], emitted[V], spikes[V] = {};

  __device__ __forceinline__ GeneralPack(const Task& task, const GeneralTask<S>& of, int64_t start, const At& at)
      : task(task), of(of), start(start), at(at) {
    get(theta, task.theta, task, kTheta, start, at[kTheta]);
    S v[V];
    if (task.v_init.fetch == Fetch::HalfTheta) {
      COS_UNROLL
      for (int i = 0; i < V; ++i) v[i] = theta[i] / 2;
    } else {
      get(v, task.v_init, task, kVInit, start, at[kVInit]);
    }
    begin(v);
    COS_UNROLL
    for (int i = 0; i < V; ++i) emitted[i] = theta[i];
    if (task.emitted.data) get(emitted, task.emitted, task, kEmitted, start, at[kEmitted]);
  }

  __device__ __forceinline__ void begin(const S (&v)[V]) {
    COS_UNROLL
    for (int i = 0; i < V; ++i) membrane[i] = {v[i], S(0), S(0), S(0)};
  }

  // Steps first..end: f(t, i, value, q, m, θ) is told of every neuron, done(t) of every step.
  template <class Step, class Done>
  __device__ __forceinline__ void simulate(In& in, int32_t first, int32_t end, const Step& f, const Done& done) {
    for (int32_t chunk = first; chunk < end; chunk += 8) {
      in.fetch(chunk, end);
      COS_UNROLL
      for (int j = 0; j < 8; ++j) {
        const int32_t t = chunk + j;
        if (t >= end) continue;
        const auto x = in.held(j);
        const S scale = of.scales ? static_cast<S>(of.scales[t]) : S(1);
        S bias[V] = {};
        if (task.step_bias.data) {
          Source now = task.step_bias;
          now.data = static_cast<const S*>(now.data) + t * of.bias_time;
          get(bias, now, task, kStepBias, start, at[kStepBias]);
        }
        COS_UNROLL
        for (int i = 0; i < V; ++i) {
          S q = 0, m = 0, value = 0;
          const S now = of.scales ? theta[i] * scale : theta[i];
          if (t < of.silent) {
            membrane[i].v = of.rule.leak * membrane[i].v + x(i) + bias[i];
          } else {
            value = general_step<Q, Predict, T>(of.rule, membrane[i], x(i), bias[i], now, emitted[i],
                                                task.emitted.data != nullptr, t + 1, spikes[i], q, m);
          }
          f(i, value, q, m, now);
        }
        done(t);
      }
    }
  }

  __device__ __forceinline__ void send(int32_t t, const Row& row) const {
    T* const to = static_cast<T*>(task.spikes) + at[kSpikes] + t * task.spikes_time;
    store_word(reinterpret_cast<word_t<T, V>*>(to), bit_cast<word_t<T, V>>(row.lanes), task.streaming);
  }

  __device__ __forceinline__ void emit_all(In& in) {
    Row row;
    simulate(
        in, 0, task.steps, [&](int i, S value, S, S, S) { row.lanes[i] = FromState<T>::call(value); },
        [&](int32_t t) { send(t, row); });
  }

  __device__ __forceinline__ void watch_from(Watch<S, V>& w, const S (&v_init)[V], In& in, int32_t first, int32_t steps) {
    const S inf = std::numeric_limits<S>::infinity();
    S kept[V];
    begin(v_init);
    COS_UNROLL
    for (int i = 0; i < V; ++i) {
      kept[i] = spikes[i];
      w.min_fired[i] = inf;
      w.max_silent[i] = -inf;
    }
    simulate(
        in, first, first + steps,
        [&](int i, S, S q, S m, S now) { general_extremes(of.rule, m, q, now, w.min_fired[i], w.max_silent[i]); },
        [](int32_t) {});
    COS_UNROLL
    for (int i = 0; i < V; ++i) {
      spikes[i] = kept[i];
      w.v[i] = membrane[i].v;
      w.count[i] = static_cast<int32_t>(membrane[i].n);
    }
  }

  __device__ __forceinline__ void plan(const int32_t (&desired)[V], int32_t rho, bool even, int32_t first, int32_t steps) {
    int32_t state[V];
    COS_UNROLL
    for (int i = 0; i < V; ++i) state[i] = rho;
    const auto s_min = static_cast<int32_t>(of.rule.s_min), s_max = static_cast<int32_t>(of.rule.s_max);
    for (int32_t t = 0; t < steps; ++t) {
      Row row;
      COS_UNROLL
      for (int i = 0; i < V; ++i) {
        if (!even && t % rho == 0) state[i] = desired[i];
        const int32_t q = even ? send_even(Share(desired[i], rho), state[i], rho) : send_front(state[i], s_min, s_max);
        row.lanes[i] = FromState<T>::call(static_cast<S>(q) * emitted[i]);
        spikes[i] += static_cast<S>(q < 0 ? -q : q);
      }
      send(first + t, row);
    }
  }

  __device__ __forceinline__ void start_of(S (&v)[V]) const {
    COS_UNROLL
    for (int i = 0; i < V; ++i) v[i] = membrane[i].v;
  }

  __device__ __forceinline__ void plan_blocks(In& in) {
    S v[V];
    start_of(v);
    for (int32_t first = 0; first < task.steps; first += task.rho) {
      const int32_t steps = task.steps - first < task.rho ? task.steps - first : task.rho;
      const Counts<S> counts(of.rule, steps);
      Watch<S, V> w;
      watch_from(w, v, in, first, steps);
      int32_t desired[V];
      COS_UNROLL
      for (int i = 0; i < V; ++i) {
        const auto psi = static_cast<int32_t>(counts.offset(w.v[i], theta[i], static_cast<S>(w.count[i])));
        desired[i] = w.count[i] + psi;
        v[i] = w.v[i] - static_cast<S>(psi) * theta[i];
      }
      plan(desired, steps, true, first, steps);
    }
  }

  __device__ __forceinline__ void calibrate_all(In& in) {
    const Counts<S> counts(of.rule, task.rho);
    S v[V];
    start_of(v);
    int32_t psi[V], count[V];
    calibrate_by(
        v, psi, count, theta, [&](S r, S own, S n) { return counts.offset(r, own, n); }, task.iterations,
        [&](Watch<S, V>& w, const S(&from)[V], int32_t) { watch_from(w, from, in, 0, task.rho); },
        [](const Watch<S, V>&, const S(&)[V]) {});
    store_run(psi, task.offset, at[kResult]);
    store_run(v, task.v_init_out, at[kResult]);
    if (task.emission == Emission::Calibrated) {
      begin(v);
      emit_all(in);
      return;
    }
    COS_UNROLL
    for (int i = 0; i < V; ++i) count[i] += psi[i];
    plan(count, task.rho, task.emission == Emission::Even, 0, task.steps);
  }
};

template <class T, int V, Staircase Q, bool Predict>
__global__ void __launch_bounds__(kThreads, 2)
    run_general(const __grid_constant__ Task task, const __grid_constant__ GeneralTask<state_t<T>> of) {
  using S = state_t<T>;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (start >= task.neurons) return;
  const auto at = place<kAllOperands>(task.walk, start);
  using Pack = GeneralPack<T, V, Q, Predict>;
  Pack pack(task, of, start, at);
  typename Pack::In in{static_cast<const T*>(task.x) + at[kX], task.x_time, task, start, at, {}};
  if constexpr (Predict || Q == Staircase::Ladder) {
    pack.emit_all(in);
  } else if (task.emission == Emission::Block) {
    pack.plan_blocks(in);
  } else if (task.rho > 0) {
    pack.calibrate_all(in);
  } else {
    pack.emit_all(in);
  }
  S v[V];
  int32_t count[V];
  pack.start_of(v);
  COS_UNROLL
  for (int i = 0; i < V; ++i) count[i] = static_cast<int32_t>(pack.spikes[i]);
  store_run(count, task.count, at[kResult]);
  store_run(v, task.v, at[kResult]);
}

template <class T, int V>
auto choose_general(const General& of) {
  switch (staircase_of(of)) {
    case Staircase::Ladder:
      return of.prediction ? run_general<T, V, Staircase::Ladder, true> : run_general<T, V, Staircase::Ladder, false>;
    case Staircase::Levels:
      return of.prediction ? run_general<T, V, Staircase::Levels, true> : run_general<T, V, Staircase::Levels, false>;
    default: return run_general<T, V, Staircase::Few, false>;
  }
}

template <class T, class Stream>
void launch_general_as(const Job& job, Stream stream, int64_t cache) {
  constexpr int V = 16 / sizeof(T);
  Task task;
  const bool packed = make_task(task, job, V, sizeof(T), sizeof(state_t<T>));
  if (!packed) make_task(task, job, 1, sizeof(T), sizeof(state_t<T>));
  task.streaming = job.neurons * job.steps * static_cast<int64_t>(sizeof(T)) > cache;
  GeneralTask<state_t<T>> of;
  of.rule = rule_of<state_t<T>>(job);
  of.bias_time = job.general.bias_time;
  of.scales = job.general.scales;
  of.silent = static_cast<int32_t>(std::min<int64_t>(job.general.silent, job.steps));
  const auto kernel = packed ? choose_general<T, V>(job.general) : choose_general<T, 1>(job.general);
  const int64_t packs = packed ? job.neurons / V : job.neurons;
  COS_CUDA_LAUNCH(kernel, static_cast<unsigned>((packs + kThreads - 1) / kThreads), stream, task, of);
}

template <class Stream>
void launch_general(const Job& job, Stream stream, int64_t cache) {
  switch (job.dtype) {
    case DType::Float32: return launch_general_as<float>(job, stream, cache);
    case DType::Float64: return launch_general_as<double>(job, stream, cache);
    case DType::Float16: return launch_general_as<Half>(job, stream, cache);
    case DType::BFloat16: return launch_general_as<BFloat16>(job, stream, cache);
  }
}

}  // namespace cos_ext::cuda
