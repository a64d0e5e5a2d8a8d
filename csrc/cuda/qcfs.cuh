// The QCFS activation on CUDA: a thread takes 16 bytes of every operand at a time, and adds up its part of θ's gradient. No
// shared memory and no atomics, so that the sums are the same every time. No torch headers here.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../core/dtypes.h"
#include "../core/quantise.h"
#include "../qcfs_job.h"
#include "kernels.cuh"
#include "memory.cuh"

namespace cos_ext::cuda {

constexpr int64_t kQcfsThreads = int64_t{1} << 17;  // at most: enough loads in flight, and few parts to add up

// The threads of a launch, each with one part of the sum.
inline int64_t qcfs_threads(int64_t elements, int64_t bytes) {
  const int64_t lanes = 16 / bytes, blocks = ((elements + lanes - 1) / lanes + kThreads - 1) / kThreads;
  return std::min(blocks * kThreads, kQcfsThreads);
}

// n lanes of 16 bytes of an operand that starts at a multiple of 16; the others are 0.
template <class T, int V>
__device__ __forceinline__ void load_some(T (&lanes)[V], const T* from, int n) {
  if (n == V) {
    const auto word = load_word<false>(reinterpret_cast<const word_t<T, V>*>(from));
    memcpy(lanes, &word, sizeof word);
    return;
  }
  COS_UNROLL
  for (int i = 0; i < V; ++i) lanes[i] = i < n ? from[i] : T{};
}

template <class T, bool Backward>
__global__ void __launch_bounds__(kThreads) quantise(const __grid_constant__ Qcfs job) {
  using S = state_t<T>;
  constexpr int V = 16 / sizeof(T);
  const Quantiser<S> quantiser{*static_cast<const S*>(job.theta), static_cast<S>(job.levels)};
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  double sum = 0;
  for (int64_t start = thread * V; start < job.elements; start += job.count * V) {
    const int n = job.elements - start < V ? static_cast<int>(job.elements - start) : V;
    T z[V], noise[V] = {}, grad[V] = {}, out[V];
    load_some(z, static_cast<const T*>(job.z) + start, n);
    if (job.noise) load_some(noise, static_cast<const T*>(job.noise) + start, n);
    if (Backward) load_some(grad, static_cast<const T*>(job.grad) + start, n);
    COS_UNROLL
    for (int i = 0; i < V; ++i) {
      const S value = to_state(z[i]), eps = to_state(noise[i]);
      if constexpr (Backward) {
        S of_theta;
        const S g = to_state(grad[i]);
        const S of_z = job.noise ? quantiser.template gradient<true>(value, eps, g, of_theta)
                                 : quantiser.template gradient<false>(value, eps, g, of_theta);
        out[i] = FromState<T>::call(of_z);
        if (i < n) sum += static_cast<double>(of_theta);
      } else {
        const S u = quantiser.scaled(value);
        out[i] = FromState<T>::call(quantiser.value(job.noise ? u + eps : u));
      }
    }
    T* const to = static_cast<T*>(job.out) + start;
    if (n == V) {
      word_t<T, V> word;
      memcpy(&word, out, sizeof word);
      *reinterpret_cast<word_t<T, V>*>(to) = word;
    } else {
      COS_UNROLL
      for (int i = 0; i < V; ++i) {
        if (i < n) to[i] = out[i];
      }
    }
  }
  if constexpr (Backward) job.parts[thread] = sum / static_cast<double>(quantiser.levels);
}

template <class T, class Stream>
void launch_qcfs_as(Qcfs job, Stream stream) {
  job.count = qcfs_threads(job.elements, sizeof(T));
  const auto kernel = job.grad ? quantise<T, true> : quantise<T, false>;
  COS_CUDA_LAUNCH(kernel, static_cast<unsigned>(job.count / kThreads), stream, job);
}

template <class Stream>
void launch(const Qcfs& job, Stream stream) {
  switch (job.dtype) {
    case DType::Float32: return launch_qcfs_as<float>(job, stream);
    case DType::Float64: return launch_qcfs_as<double>(job, stream);
    case DType::Float16: return launch_qcfs_as<Half>(job, stream);
    case DType::BFloat16: return launch_qcfs_as<BFloat16>(job, stream);
  }
}

}  // namespace cos_ext::cuda
