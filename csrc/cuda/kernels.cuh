// The CUDA walk over memory: a thread owns the neurons of one 16-byte load (or one neuron where memory is irregular), does
// their whole calibration and simulation, and keeps rows of inputs in registers. The arithmetic is csrc/core's; task.h says
// what a kernel is told. No torch headers here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/calibration.h"
#include "../core/current.h"
#include "../core/dtypes.h"
#include "../core/emission.h"
#include "../core/neuron.h"
#include "../core/statistics.h"
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

template <int Operands>
struct Place {
  int64_t offset[Operands] = {};
};
// The offsets, in elements, of every operand's element for the neuron `linear` of the walk.
template <int Operands>
__device__ __forceinline__ Place<Operands> place(const Walk& walk, int64_t linear) {
  Place<Operands> at;
  COS_NO_UNROLL
  for (int d = walk.ndim - 1; d > 0; --d) {
    const int64_t outer = walk.dims[d].divide(linear);
    const int64_t index = linear - outer * walk.dims[d].size;
    COS_UNROLL
    for (int operand = 0; operand < Operands; ++operand) at.offset[operand] += index * walk.stride[operand][d];
    linear = outer;
  }
  COS_UNROLL
  for (int operand = 0; operand < Operands; ++operand) at.offset[operand] += linear * walk.stride[operand][0];
  return at;
}

// What is loaded or stored in one transaction.
template <size_t Bytes>
struct WordOf : BitsOf<Bytes> {};
template <>
struct WordOf<16> {
  using type = uint4;
};
struct Word32 {  // never one transaction: the four float64 of a window
  uint64_t part[4];
};
template <>
struct WordOf<32> {
  using type = Word32;
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
__device__ __forceinline__ void opaque([[maybe_unused]] uint64_t& word) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(word));
#endif
}
__device__ __forceinline__ void opaque([[maybe_unused]] uint4& word) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(word.x), "+r"(word.y), "+r"(word.z), "+r"(word.w));
#endif
}

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

// A parameter of the pack that starts at the neuron `start`.
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
      const S second = data[place<kOperands>(task.walk, start + V - 1).offset[operand]];
      COS_UNROLL
      for (int i = 1; i < V; ++i) lanes[i] = i < left ? first : second;
    }
  }
}

// A parameter of a window.
template <class S>
__device__ __forceinline__ void get_window(S (&lanes)[4], const Source& source, int64_t offset) {
  const S* data = static_cast<const S*>(source.data);
  COS_UNROLL
  for (int i = 0; i < 4; ++i) {
    lanes[i] = data ? data[offset + (i & 1) * source.across + (i >> 1) * source.down] : static_cast<S>(source.value);
  }
}

// What a kernel does beside calibrating and simulating, in kernels of their own: it takes registers.
enum class Extra {
  Plain,
  Fused,  // the input may be affine in x and have a residual; sums over the neurons where they are wanted
  Window  // Fused, and a thread owns the 2 x 2 neurons of a window, whose spikes it averages
};
template <Extra E>
constexpr int kOperandsOf = E == Extra::Plain ? static_cast<int>(kPlain) : static_cast<int>(kOperands);

// x(t) of a pack, Rows of them in registers at a time, so that Rows loads are in flight before the first is used.
template <class T, int V, int Rows, Mode M, Extra E>
struct Inputs {
  using S = state_t<T>;
  using Word = word_t<T, V>;
  struct Row {
    T lanes[V];
    __device__ __forceinline__ S operator()(int i) const { return to_state(lanes[i]); }
  };

  const T* base;
  int64_t time;
  const Task& task;
  int64_t start;
  const Place<kOperandsOf<E>>& at;
  Word rows[Rows];

  __device__ __forceinline__ Word load(const T* from, [[maybe_unused]] int64_t across, [[maybe_unused]] int64_t down) const {
    if constexpr (E == Extra::Window) {
      Row row;
      COS_UNROLL
      for (int i = 0; i < 4; ++i) row.lanes[i] = from[(i & 1) * across + (i >> 1) * down];
      return bit_cast<Word>(row.lanes);
    } else {
      return load_word<M == Mode::Reread>(reinterpret_cast<const Word*>(from));
    }
  }

  // Rows first, first + 1, ... below end. A static input is read once.
  __device__ __forceinline__ void fetch(int32_t first, int32_t end) {
    if (time == 0) {
      const Word only = load(base, task.x_across, task.x_down);
      COS_UNROLL
      for (int j = 0; j < Rows; ++j) rows[j] = only;
    } else {
      const T* from = base + first * time;
      COS_UNROLL
      for (int j = 0; j < Rows; ++j, from += time) {
        if (first + j < end) rows[j] = load(from, task.x_across, task.x_down);
      }
    }
    if constexpr (E != Extra::Plain) fuse(first, end);
  }
  __device__ __forceinline__ Row held(int j) const { return bit_cast<Row>(rows[j]); }

  // The currents of the rows in registers, from x.
  __device__ __forceinline__ void fuse(int32_t first, int32_t end) {
    if (task.scale.data || task.bias.data) {
      S scale[V], bias[V];
      if constexpr (E == Extra::Window) {
        get_window(scale, task.scale, at.offset[kScale]);
        get_window(bias, task.bias, at.offset[kBias]);
      } else {
        get(scale, task.scale, task, kScale, start, at.offset[kScale]);
        get(bias, task.bias, task, kBias, start, at.offset[kBias]);
      }
      COS_UNROLL
      for (int j = 0; j < Rows; ++j) {
        Row row = held(j);
        COS_UNROLL
        for (int i = 0; i < V; ++i) row.lanes[i] = affine(row.lanes[i], scale[i], bias[i]);
        if (first + j < end) rows[j] = bit_cast<Word>(row.lanes);
      }
    }
    if (task.residual) {
      const T* from = static_cast<const T*>(task.residual) + at.offset[kResidual] + first * task.residual_time;
      COS_UNROLL
      for (int j = 0; j < Rows; ++j, from += task.residual_time) {
        if (first + j >= end) continue;
        const Row other = bit_cast<Row>(load(from, task.residual_across, task.residual_down));
        Row row = held(j);
        COS_UNROLL
        for (int i = 0; i < V; ++i) row.lanes[i] = with_residual(row.lanes[i], other.lanes[i]);
        rows[j] = bit_cast<Word>(row.lanes);
      }
    }
  }

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
template <class T, int V, class Stored, Extra E>
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
    if constexpr (E == Extra::Window) {
      using S = state_t<T>;
      S sum = 0;
      COS_UNROLL
      for (int i = 0; i < 4; ++i) sum += to_state(row.lanes[i]);
      *next = FromState<T>::call(sum / S(4));
    } else {
      store_word(reinterpret_cast<Word*>(next), bit_cast<Word>(row.lanes), streaming);
    }
    next += time;
  }
};

// Adds over the warp, to one of several rows of sums: one address would be too few for all blocks of a launch.
__device__ __forceinline__ void add_to(int64_t* sum, int64_t value) {
#if defined(__CUDA_ARCH__)
  auto* const to = reinterpret_cast<unsigned long long*>(sum);
  if (__activemask() == 0xffffffffu) {
    COS_UNROLL
    for (int other = 16; other; other >>= 1) value += __shfl_xor_sync(0xffffffffu, value, other);
    if ((threadIdx.x & 31) == 0 && value) atomicAdd(to, static_cast<unsigned long long>(value));
  } else if (value) {
    atomicAdd(to, static_cast<unsigned long long>(value));
  }
#else
  *sum += value;
#endif
}
__device__ __forceinline__ void add_one(int64_t* sum) {
#if defined(__CUDA_ARCH__)
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), 1ull);
#else
  ++*sum;
#endif
}

template <class S, int V, class Theta>
__device__ __forceinline__ void tally_watch(const Task& task, const Watch<S, V>& w, const S (&v_init)[V], const Theta& theta,
                                            const int32_t (&psi)[V], const int32_t (&count)[V]) {
  int64_t* const histogram = task.tally + (blockIdx.x % task.slots) * task.tally_row + task.rho;
  int64_t* const sums = histogram + task.rho + 1;
  int64_t clipping = 0, quantisation = 0;
  int32_t near[3] = {};  // ψ = -1, 0, 1: nearly all
  COS_UNROLL
  for (int i = 0; i < V; ++i) {
    int64_t clipped, rounded;
    error_split(w.v[i], v_init[i], theta[i], count[i], psi[i], task.rho, clipped, rounded);
    clipping += clipped;
    quantisation += rounded;
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
  Inputs<T, V, Rows, M, E> in{static_cast<const T*>(task.x) + at.offset[kX], task.x_time, task, start, at, {}};
  const bool planned = M != Mode::Fire && task.emission != Emission::Calibrated;  // needs the first rho inputs alone
  if (M == Mode::Held) in.fetch(0, task.steps > task.rho && !planned ? task.steps : task.rho);
  S v[V];
  if (task.v_init.fetch == Fetch::HalfTheta) {
    COS_UNROLL
    for (int i = 0; i < V; ++i) v[i] = theta[i] / 2;
  } else if constexpr (E == Extra::Window) {
    get_window(v, task.v_init, at.offset[kVInit]);
  } else {
    get(v, task.v_init, task, kVInit, start, at.offset[kVInit]);
  }
  int32_t count[V], desired[V];
  if (M != Mode::Fire) {
    int32_t psi[V];
    calibrate(v, psi, count, theta, task.rho, task.iterations,
              [&](Watch<S, V>& w, const S(&from)[V], int32_t) { watch(w, from, theta, task.rho, in); },
              [&](const Watch<S, V>& w, const S(&from)[V]) {
                if (E != Extra::Plain && task.tally) tally_watch(task, w, from, theta, psi, count);
              });
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
    using Out = Outputs<T, V, Stored, E>;
    Out out{static_cast<T*>(task.spikes) + at.offset[kSpikes], task.spikes_time, task.streaming, stored};
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
    if (planned && task.emission == Emission::Even) {
      emit_planned<true>(desired, count, task.rho, task.steps, out);
    } else if (planned) {
      emit_planned<false>(desired, count, task.rho, task.steps, out);
    } else if (M == Mode::Fire && task.hard_reset) {
      emit<true>(v, count, theta, HardReset<S>{static_cast<S>(task.v_reset)}, task.steps, in, out);
    } else {
      emit<true>(v, count, theta, SoftReset{}, task.steps, in, out);
    }
    if (E != Extra::Plain && M != Mode::Fire && task.tally) tally_emission(task, count);
  }
  if constexpr (E != Extra::Window) {
    store_run(count, task.count, at.offset[kResult]);
    store_run(v, task.v, at.offset[kResult]);
  }
}

// OneTheta: θ is the same for the whole pack (Fetch::Value or Fetch::One) and takes one register.
template <class T, int V, int Rows, Mode M, bool OneTheta, Extra E = Extra::Plain>
__global__ void __launch_bounds__(kThreads, 2) run(const __grid_constant__ Task task) {
  using S = state_t<T>;
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t start = E == Extra::Window ? pack : pack * V;
  if (start >= task.neurons) return;
  const auto at = place<kOperandsOf<E>>(task.walk, start);
  if constexpr (E == Extra::Window) {
    PerLane<S, V> theta;
    get_window(theta.values, task.theta, at.offset[kTheta]);
    run_pack<T, V, Rows, M, E>(task, start, at, theta);
  } else if constexpr (OneTheta) {
    S theta[1];
    get(theta, task.theta, task, kTheta, start, at.offset[kTheta]);
    run_pack<T, V, Rows, M, E>(task, start, at, Uniform<S, V>{theta[0]});
  } else {
    PerLane<S, V> theta;
    get(theta.values, task.theta, task, kTheta, start, at.offset[kTheta]);
    run_pack<T, V, Rows, M, E>(task, start, at, theta);
  }
}

// The one place that launches; tests/cpp/cuda_shim.h replaces it to run the kernels on the host.
#ifndef COS_CUDA_LAUNCH
#define COS_CUDA_LAUNCH(kernel, blocks, stream, task) kernel<<<blocks, kThreads, 0, stream>>>(task)
#endif

using Kernel = void (*)(Task);

// The kernel of a task, by what it has to keep in registers.
template <class T, int V, bool OneTheta, Extra E>
Kernel choose(const Task& task) {
  const bool fires = task.rho == 0 || task.emission == Emission::Rate;
  if constexpr (E != Extra::Plain) {  // fewer kernels
    if (fires) return run<T, V, 8, Mode::Fire, OneTheta, E>;
    return task.rho <= 8 ? run<T, V, 8, Mode::Held, OneTheta, E> : run<T, V, 8, Mode::Reread, OneTheta, E>;
  } else if constexpr (V == 1) {  // irregular memory: many rows in flight, fewer kernels
    if (fires) return run<T, V, 8, Mode::Fire, OneTheta>;
    return task.rho <= 16 ? run<T, V, 16, Mode::Held, OneTheta> : run<T, V, 8, Mode::Reread, OneTheta>;
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
    kernel = job.fused() || job.tally ? choose_theta<T, V, Extra::Fused>(task, packed) : choose_theta<T, V, Extra::Plain>(task, packed);
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
