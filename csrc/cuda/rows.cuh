// Rows of a pack: x(t) as the neurons see it, many loads in flight or held in registers, and the spikes on their way out,
// averaged where a pack is a window. What is done with them is pack.cuh's; no torch headers here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/current.h"
#include "../core/dtypes.h"
#include "memory.cuh"
#include "task.h"

namespace cos_ext::cuda {

// How a kernel treats the first rho rows.
enum class Mode {
  Fire,    // no calibration
  Held,    // rho <= Rows: read once and kept in registers until they are emitted
  Reread   // any rho: read again in every round
};

// What a kernel does beside calibrating and simulating, in kernels of their own: it takes registers.
enum class Extra {
  Plain,
  Fused,  // the input may be affine in x and have a residual; sums over the neurons where they are wanted
  Window  // Fused, and a thread owns the 2 x 2 neurons of a window, whose spikes it averages
};
template <Extra E>
constexpr int kOperandsOf = E == Extra::Plain ? static_cast<int>(kPlain) : static_cast<int>(kOperands);

// x(t) of a pack, Rows of them in registers at a time, so that Rows loads are in flight before the first is used.
template <class T, int V, int Rows, Mode M, Extra E, int Operands = kOperandsOf<E>>
struct Inputs {
  using S = state_t<T>;
  using Word = word_t<T, V>;
  struct Row {
    Word word;
    __device__ __forceinline__ T lane(int i) const { return element<T>(word, i); }
    __device__ __forceinline__ S operator()(int i) const { return to_state(lane(i)); }
  };

  const T* base;
  int64_t time;
  const Task& task;
  int64_t start;
  const Place<Operands>& at;
  Word rows[Rows];

  __device__ __forceinline__ Word load(const T* from, [[maybe_unused]] int64_t across, [[maybe_unused]] int64_t down) const {
    if constexpr (E == Extra::Window) {
      T lanes[4];
      COS_UNROLL
      for (int i = 0; i < 4; ++i) lanes[i] = from[(i & 1) * across + (i >> 1) * down];
      return bit_cast<Word>(lanes);
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
      // Of four rows the compiler would keep all addresses from chunk to chunk, and compute them where there is one chunk.
      if constexpr (Rows <= 4) opaque(from);
      COS_UNROLL
      for (int j = 0; j < Rows; ++j, from += time) {
        if (first + j < end) rows[j] = load(from, task.x_across, task.x_down);
      }
    }
    if constexpr (E != Extra::Plain) fuse(first, end);
  }
  // Before rows are used that are used once more: see opaque().
  __device__ __forceinline__ void hide() {
    if constexpr (sizeof(T) == 2) {
      COS_UNROLL
      for (int j = 0; j < Rows; ++j) opaque(rows[j]);
    }
  }
  __device__ __forceinline__ Row held(int j) const { return {rows[j]}; }

  // The currents of the rows in registers, from x.
  __device__ __forceinline__ void fuse(int32_t first, int32_t end) {
    if (task.scale.data || task.bias.data) {
      S scale[V], bias[V];
      if constexpr (E == Extra::Window) {
        get_window(scale, task.scale, at[kScale]);
        get_window(bias, task.bias, at[kBias]);
      } else {
        get(scale, task.scale, task, kScale, start, at[kScale]);
        get(bias, task.bias, task, kBias, start, at[kBias]);
      }
      COS_UNROLL
      for (int j = 0; j < Rows; ++j) {
        T lanes[V];
        COS_UNROLL
        for (int i = 0; i < V; ++i) lanes[i] = affine(held(j).lane(i), scale[i], bias[i]);
        if (first + j < end) rows[j] = bit_cast<Word>(lanes);
      }
    }
    if (task.residual) {
      const T* from = static_cast<const T*>(task.residual) + at[kResidual] + first * task.residual_time;
      COS_UNROLL
      for (int j = 0; j < Rows; ++j, from += task.residual_time) {
        if (first + j >= end) continue;
        const Row other{load(from, task.residual_across, task.residual_down)};
        T lanes[V];
        COS_UNROLL
        for (int i = 0; i < V; ++i) lanes[i] = with_residual(held(j).lane(i), other.lane(i));
        rows[j] = bit_cast<Word>(lanes);
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void watched(int32_t rho, const F& f) {
    if constexpr (M == Mode::Held) {
      hide();
      f(held(0), std::true_type{});
      COS_UNROLL
      for (int j = 1; j < Rows; ++j) {
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
      M == Mode::Held&& first == 0 ? hide() : fetch(first, steps);
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

}  // namespace cos_ext::cuda
