// The CUDA walk over memory: a thread owns the V neurons of one 16-byte load (or one neuron where memory is irregular), does
// their whole calibration and simulation, and keeps the first Held inputs in registers. The arithmetic is csrc/core's.
// No torch headers here.
#pragma once

#include <cstdint>

#include "../core/calibration.h"
#include "../core/dtypes.h"
#include "../core/neuron.h"
#include "../job.h"

namespace cos_ext::cuda {

constexpr int kThreads = 256;

// The offset of neuron `linear` of the walk, in elements.
__device__ __forceinline__ int64_t offset_of(const Layout& layout, int64_t linear) {
  if (layout.ndim == 1) return linear * layout.stride[0];
  int64_t offset = 0;
  for (int d = layout.ndim - 1; d > 0; --d) {
    const int64_t rest = linear / layout.size[d];
    offset += (linear - rest * layout.size[d]) * layout.stride[d];
    linear = rest;
  }
  return layout.ndim == 0 ? 0 : offset + linear * layout.stride[0];
}

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T lanes[V];
};

// A pack of V neurons that is regular in memory is read and written in one transaction; else V is 1.
template <class T, int V, int Held>
struct Inputs {
  struct Values {
    state_t<T> x[V];
    __device__ __forceinline__ state_t<T> operator()(int i) const { return x[i]; }
  };

  const T* base;
  int64_t time;
  Pack<T, V> cache[Held > 0 ? Held : 1];

  __device__ __forceinline__ Inputs(const Job& job, int64_t offset)
      : base(static_cast<const T*>(job.x) + offset), time(job.x_time) {
    const int64_t rows = job.steps > job.rho ? job.steps : job.rho;
    COS_UNROLL
    for (int t = 0; t < Held; ++t) {
      if (t < rows) cache[t] = read(t);
    }
  }

  __device__ __forceinline__ Pack<T, V> read(int64_t t) const {
    return *reinterpret_cast<const Pack<T, V>*>(base + t * time);
  }
  static __device__ __forceinline__ Values widened(const Pack<T, V>& pack) {
    Values values;
    COS_UNROLL
    for (int i = 0; i < V; ++i) values.x[i] = to_state(pack.lanes[i]);
    return values;
  }
  __device__ __forceinline__ Values held(int t) const { return widened(cache[t]); }
  __device__ __forceinline__ Values load(int64_t t) const { return widened(read(t)); }
};

template <class T, int V>
struct Outputs {
  struct Row {
    Pack<T, V> pack;
    const T* theta;
    __device__ __forceinline__ void operator()(int i, bool fired) { pack.lanes[i] = value_or_zero(fired, theta[i]); }
  };

  T* base;
  int64_t time;
  T theta[V];

  __device__ __forceinline__ Row open(int64_t) const { return Row{{}, theta}; }
  __device__ __forceinline__ void close(int64_t t, const Row& row) const {
    *reinterpret_cast<Pack<T, V>*>(base + t * time) = row.pack;
  }
};

template <class S, int V>
__device__ __forceinline__ void put(const Job& job, const S (&lanes)[V], void* target, int64_t start) {
  if (!target) return;
  COS_UNROLL
  for (int i = 0; i < V; ++i) static_cast<S*>(target)[offset_of(job.result_layout, start + i)] = lanes[i];
}

// The V values of a parameter; one division chain per thread where they lie in one run.
template <class S, int V>
__device__ __forceinline__ void get(const Parameter& parameter, S (&lanes)[V], int64_t start) {
  COS_UNROLL
  for (int i = 0; i < V; ++i) {
    lanes[i] = parameter.data ? static_cast<const S*>(parameter.data)[offset_of(parameter.layout, start + i)]
                              : static_cast<S>(parameter.value);
  }
}

template <class T, int V, int Held>
__global__ void __launch_bounds__(kThreads) run(const __grid_constant__ Job job) {
  using S = state_t<T>;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (start >= job.neurons) return;
  Inputs<T, V, Held> in(job, V > 1 ? start : offset_of(job.x_layout, start));
  PerLane<S, V> theta;
  get(job.theta, theta.values, start);
  S v[V];
  if (job.half_theta_init) {
    COS_UNROLL
    for (int i = 0; i < V; ++i) v[i] = theta[i] / 2;
  } else {
    get(job.v_init, v, start);
  }
  int32_t count[V];
  if (job.rho > 0) {
    int32_t psi[V];
    calibrate(v, psi, count, theta, job.rho, job.iterations,
              [&](Watch<S, V>& w, const S(&from)[V], int32_t) { watch<Held>(w, from, theta, job.rho, in); });
    put(job, psi, job.offset, start);
    put(job, v, job.v_init_out, start);
  }
  if (job.steps > 0) {
    Outputs<T, V> out;
    out.base = static_cast<T*>(job.spikes) + (V > 1 ? start : offset_of(job.spikes_layout, start));
    out.time = job.spikes_time;
    COS_UNROLL
    for (int i = 0; i < V; ++i) out.theta[i] = FromState<T>::call(theta[i]);
    if (job.hard_reset) {
      emit<true, Held>(v, count, theta, HardReset<S>{static_cast<S>(job.v_reset)}, job.steps, in, out);
    } else {
      emit<true, Held>(v, count, theta, SoftReset{}, job.steps, in, out);
    }
  }
  put(job, count, job.count, start);
  put(job, v, job.v, start);
}

// Whether every pack of V neurons is aligned and whole: dense operands, strides and pointers that are multiples of 16 bytes.
template <class T>
bool packable(const Job& job) {
  constexpr int64_t kLanes = 16 / sizeof(T);
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return job.neurons % kLanes == 0 && job.x_layout.dense() && aligned(job.x) && job.x_time % kLanes == 0 &&
         (!job.spikes || (job.spikes_layout.dense() && aligned(job.spikes) && job.spikes_time % kLanes == 0));
}

// The one place that launches; tests/cpp/cuda_shim.h replaces it to run the kernels on the host.
#ifndef COS_CUDA_LAUNCH
#define COS_CUDA_LAUNCH(kernel, blocks, stream, job) kernel<<<blocks, kThreads, 0, stream>>>(job)
#endif

template <class T, int V, class Stream>
void start(const Job& job, Stream stream) {
  const int64_t packs = (job.neurons + V - 1) / V;
  const auto blocks = static_cast<unsigned>((packs + kThreads - 1) / kThreads);
  void (*kernel)(Job) = nullptr;
  if (job.rho == 0 || job.rho > 16) {
    kernel = run<T, V, 0>;
  } else if (job.rho <= 4) {
    kernel = run<T, V, 4>;
  } else if (job.rho <= 8) {
    kernel = run<T, V, 8>;
  } else {
    kernel = run<T, V, 16>;
  }
  COS_CUDA_LAUNCH(kernel, blocks, stream, job);
}

template <class T, class Stream>
void start_packed(const Job& job, Stream stream) {
  constexpr int kLanes = 16 / sizeof(T);
  packable<T>(job) ? start<T, kLanes>(job, stream) : start<T, 1>(job, stream);
}

template <class Stream>
void launch(const Job& job, Stream stream) {
  switch (job.dtype) {
    case DType::Float32: return start_packed<float>(job, stream);
    case DType::Float64: return start_packed<double>(job, stream);
    case DType::Float16: return start_packed<Half>(job, stream);
    case DType::BFloat16: return start_packed<BFloat16>(job, stream);
  }
}

}  // namespace cos_ext::cuda
