// The CUDA walk over memory: a thread owns the neurons of one 16-byte load (or one neuron where memory is irregular), does
// their whole calibration and simulation, and keeps rows of inputs in registers. The arithmetic is csrc/core's; task.h says
// what a kernel is told. No torch headers here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/calibration.h"
#include "../core/dtypes.h"
#include "../core/emission.h"
#include "../core/neuron.h"
#include "task.h"

// Over rows of inputs and neurons of a pack, which live in registers.
#if defined(__CUDACC__)
#define COS_UNROLL _Pragma("unroll")
#define COS_NO_UNROLL _Pragma("unroll 1")
#else
#define COS_UNROLL
#define COS_NO_UNROLL
#endif

namespace cos_ext::cuda {

// Small blocks: a layer of 2^16 neurons then still fills an H100 or H200.
constexpr int kThreads = 128;

// How a kernel treats the first rho rows.
enum class Mode {
  Fire,    // no calibration
  Held,    // rho <= Rows: read once and kept in registers until they are emitted
  Reread   // any rho: read again in every round
};

struct Place {
  int64_t offset[kOperands] = {};
};
// The offsets, in elements, of every operand's element for the neuron `linear` of the walk.
__device__ __forceinline__ Place place(const Walk& walk, int64_t linear) {
  Place at;
  COS_NO_UNROLL
  for (int d = walk.ndim - 1; d > 0; --d) {
    const int64_t outer = walk.dims[d].divide(linear);
    const int64_t index = linear - outer * walk.dims[d].size;
    COS_UNROLL
    for (int operand = 0; operand < kOperands; ++operand) at.offset[operand] += index * walk.stride[operand][d];
    linear = outer;
  }
  COS_UNROLL
  for (int operand = 0; operand < kOperands; ++operand) at.offset[operand] += linear * walk.stride[operand][0];
  return at;
}

// What is loaded or stored in one transaction.
template <size_t Bytes>
struct WordOf : BitsOf<Bytes> {};
template <>
struct WordOf<16> {
  using type = uint4;
};
template <class T, int V>
using word_t = typename WordOf<sizeof(T) * V>::type;

// A plain store of 16 bytes as one instruction: beside the streaming one, the compiler would take it apart.
__device__ __forceinline__ void store_plain(uint4* to, const uint4& word) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y),
               "r"(word.z), "r"(word.w)
               : "memory");
#else
  *to = word;
#endif
}
template <class Word>
__device__ __forceinline__ void store_plain(Word* to, const Word& word) {
  *to = word;
}

// Inputs are read once and need no place in the caches, but where rows are read again.
template <bool Again, class Word>
__device__ __forceinline__ Word load_word(const Word* from) {
  return Again ? *from : __ldcs(from);
}
template <class Word>
__device__ __forceinline__ void store_word(Word* to, const Word& word, bool streaming) {
  if (streaming) {
    __stcs(to, word);
  } else {
    store_plain(to, word);
  }
}

// Hides a value from the optimiser, which would otherwise widen 16-bit rows once and keep them, at twice the registers.
__device__ __forceinline__ void opaque([[maybe_unused]] uint16_t& word) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+h"(word));
#endif
}
__device__ __forceinline__ void opaque([[maybe_unused]] uint4& word) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(word.x), "+r"(word.y), "+r"(word.z), "+r"(word.w));
#endif
}

// x(t) of a pack, Rows of them in registers at a time, so that Rows loads are in flight before the first is used.
template <class T, int V, int Rows, Mode M>
struct Inputs {
  using Word = word_t<T, V>;
  struct Row {
    T lanes[V];
    __device__ __forceinline__ state_t<T> operator()(int i) const { return to_state(lanes[i]); }
  };

  const T* base;
  int64_t time;
  Word rows[Rows];

  // Rows first, first + 1, ... below end. A static input is read once.
  __device__ __forceinline__ void fetch(int32_t first, int32_t end) {
    if (time == 0) {
      const Word only = load_word<M == Mode::Reread>(reinterpret_cast<const Word*>(base));
      COS_UNROLL
      for (int j = 0; j < Rows; ++j) rows[j] = only;
      return;
    }
    const T* from = base + first * time;
    COS_UNROLL
    for (int j = 0; j < Rows; ++j, from += time) {
      if (first + j < end) rows[j] = load_word<M == Mode::Reread>(reinterpret_cast<const Word*>(from));
    }
  }
  __device__ __forceinline__ Row held(int j) const { return bit_cast<Row>(rows[j]); }

  template <class F>
  __device__ __forceinline__ void watched(int32_t rho, const F& f) {
    if constexpr (M == Mode::Held) {
      if constexpr (sizeof(T) == 2) {
        COS_UNROLL
        for (int j = 0; j < Rows; ++j) opaque(rows[j]);
      }
      COS_UNROLL
      for (int j = 0; j < Rows; ++j) {
        if (j < rho) f(held(j));
      }
    } else {
      for (int32_t first = 0; first < rho; first += Rows) {
        fetch(first, rho);
        COS_UNROLL
        for (int j = 0; j < Rows; ++j) {
          if (first + j < rho) f(held(j));
        }
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void emitted(int32_t steps, const F& f) {
    for (int32_t first = 0; first < steps; first += Rows) {
      if (M != Mode::Held || first > 0) fetch(first, steps);
      COS_UNROLL
      for (int j = 0; j < Rows; ++j) {
        if (first + j < steps) f(first + j, held(j));
      }
    }
  }
};

// Spikes of a pack. Stored is θ by lane in the storage type.
template <class T, int V, class Stored>
struct Outputs {
  using Word = word_t<T, V>;
  struct Row {
    const Stored& theta;
    T lanes[V];
    __device__ __forceinline__ void operator()(int i, bool fired) { lanes[i] = value_or_zero(fired, theta[i]); }
  };

  T* next;  // rows are written in order of time
  int64_t time;
  bool streaming;
  const Stored& theta;

  __device__ __forceinline__ Row open(int32_t) const { return Row{theta, {}}; }
  __device__ __forceinline__ void close(int32_t, const Row& row) {
    store_word(reinterpret_cast<Word*>(next), bit_cast<Word>(row.lanes), streaming);
    next += time;
  }
};

// V values in the state type or counts, as one run of memory in transactions of at most 16 bytes.
template <class S, int V>
constexpr int kRun = sizeof(S) * V > 16 ? 16 / sizeof(S) : V;
template <class S, int V>
__device__ __forceinline__ void load_run(S (&lanes)[V], const S* from) {
  constexpr int n = kRun<S, V>;
  COS_UNROLL
  for (int first = 0; first < V; first += n) {
    const auto word = *reinterpret_cast<const word_t<S, n>*>(from + first);
    memcpy(lanes + first, &word, sizeof word);
  }
}
template <class S, int V>
__device__ __forceinline__ void store_run(const S (&lanes)[V], void* target, int64_t offset) {
  if (!target) return;
  constexpr int n = kRun<S, V>;
  COS_UNROLL
  for (int first = 0; first < V; first += n) {
    word_t<S, n> word;
    memcpy(&word, lanes + first, sizeof word);
    *reinterpret_cast<word_t<S, n>*>(static_cast<S*>(target) + offset + first) = word;
  }
}

// θ or v_init of the pack that starts at the neuron `start`.
template <class S, int V>
__device__ __forceinline__ void get(S (&lanes)[V], const Source& source, const Task& task, Operand operand, int64_t start,
                                    int64_t offset) {
  const S* data = static_cast<const S*>(source.data);
  if (V > 1 && source.fetch == Fetch::Run) {
    load_run(lanes, data + offset);
    return;
  }
  const S first = source.fetch == Fetch::Value ? static_cast<S>(source.value) : data[offset];
  COS_UNROLL
  for (int i = 0; i < V; ++i) lanes[i] = first;
  if (V > 1 && source.fetch == Fetch::Split) {
    const int64_t left = source.run.size - (start - source.run.divide(start) * source.run.size);
    if (left < V) {
      const S second = data[place(task.walk, start + V - 1).offset[operand]];
      COS_UNROLL
      for (int i = 1; i < V; ++i) lanes[i] = i < left ? first : second;
    }
  }
}

template <class T, int V, int Rows, Mode M, class Theta>
__device__ __forceinline__ void run_pack(const Task& task, int64_t start, const Place& at, const Theta& theta) {
  using S = state_t<T>;
  Inputs<T, V, Rows, M> in;
  in.base = static_cast<const T*>(task.x) + at.offset[kX];
  in.time = task.x_time;
  const bool planned = M != Mode::Fire && task.emission != Emission::Calibrated;  // needs the first rho inputs alone
  if (M == Mode::Held) in.fetch(0, task.steps > task.rho && !planned ? task.steps : task.rho);
  S v[V];
  if (task.v_init.fetch == Fetch::HalfTheta) {
    COS_UNROLL
    for (int i = 0; i < V; ++i) v[i] = theta[i] / 2;
  } else {
    get(v, task.v_init, task, kVInit, start, at.offset[kVInit]);
  }
  int32_t count[V], desired[V];
  if (M != Mode::Fire) {
    int32_t psi[V];
    calibrate(v, psi, count, theta, task.rho, task.iterations,
              [&](Watch<S, V>& w, const S(&from)[V], int32_t) { watch(w, from, theta, task.rho, in); });
    store_run(psi, task.offset, at.offset[kResult]);
    store_run(v, task.v_init_out, at.offset[kResult]);
    COS_UNROLL
    for (int i = 0; i < V; ++i) desired[i] = count[i] + psi[i];
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
    Outputs<T, V, Stored> out{static_cast<T*>(task.spikes) + at.offset[kSpikes], task.spikes_time, task.streaming, stored};
    if (planned && task.emission == Emission::Even) {
      emit_planned<true>(desired, count, task.rho, task.steps, out);
    } else if (planned) {
      emit_planned<false>(desired, count, task.rho, task.steps, out);
    } else if (M == Mode::Fire && task.hard_reset) {
      emit<true>(v, count, theta, HardReset<S>{static_cast<S>(task.v_reset)}, task.steps, in, out);
    } else {
      emit<true>(v, count, theta, SoftReset{}, task.steps, in, out);
    }
  }
  store_run(count, task.count, at.offset[kResult]);
  store_run(v, task.v, at.offset[kResult]);
}

// OneTheta: θ is the same for the whole pack (Fetch::Value or Fetch::One) and takes one register.
template <class T, int V, int Rows, Mode M, bool OneTheta>
__global__ void __launch_bounds__(kThreads, 2) run(const __grid_constant__ Task task) {
  using S = state_t<T>;
  const int64_t start = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (start >= task.neurons) return;
  const Place at = place(task.walk, start);
  if constexpr (OneTheta) {
    S theta[1];
    get(theta, task.theta, task, kTheta, start, at.offset[kTheta]);
    run_pack<T, V, Rows, M>(task, start, at, Uniform<S, V>{theta[0]});
  } else {
    PerLane<S, V> theta;
    get(theta.values, task.theta, task, kTheta, start, at.offset[kTheta]);
    run_pack<T, V, Rows, M>(task, start, at, theta);
  }
}

// The one place that launches; tests/cpp/cuda_shim.h replaces it to run the kernels on the host.
#ifndef COS_CUDA_LAUNCH
#define COS_CUDA_LAUNCH(kernel, blocks, stream, task) kernel<<<blocks, kThreads, 0, stream>>>(task)
#endif

using Kernel = void (*)(Task);

// The kernel of a task, by what it has to keep in registers.
template <class T, int V, bool OneTheta>
Kernel choose(const Task& task) {
  if (task.rho > 16) return run<T, V, 8, Mode::Reread, OneTheta>;
  if constexpr (V == 1) {  // irregular memory: many rows in flight, fewer kernels
    return task.rho == 0 ? run<T, V, 8, Mode::Fire, OneTheta> : run<T, V, 16, Mode::Held, OneTheta>;
  } else {
    if (task.rho == 0) return task.steps <= 4 ? run<T, V, 4, Mode::Fire, OneTheta> : run<T, V, 8, Mode::Fire, OneTheta>;
    if (task.rho <= 4) return run<T, V, 4, Mode::Held, OneTheta>;
    return task.rho <= 8 ? run<T, V, 8, Mode::Held, OneTheta> : run<T, V, 16, Mode::Held, OneTheta>;
  }
}

// Launches the job of storage type T. Outputs larger than `cache` bytes are stored past the L2 cache.
template <class T, class Stream>
void launch_as(const Job& job, Stream stream, int64_t cache) {
  constexpr int V = 16 / sizeof(T);
  Task task;
  const bool packed = make_task(task, job, V, sizeof(T), sizeof(state_t<T>));
  if (!packed) make_task(task, job, 1, sizeof(T), sizeof(state_t<T>));
  task.streaming = job.neurons * job.steps * static_cast<int64_t>(sizeof(T)) > cache;
  const bool one = task.theta.fetch == Fetch::Value || task.theta.fetch == Fetch::One;
  const Kernel kernel = !packed ? choose<T, 1, true>(task) : one ? choose<T, V, true>(task) : choose<T, V, false>(task);
  const int64_t packs = packed ? job.neurons / V : job.neurons;
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
