// Lets csrc/cuda/*.cuh compile with a host compiler and runs its kernels on the CPU: annotations vanish, vector types
// and cache hints become plain loads and stores, and a launch walks all blocks and warps one after the other, forwards or
// backwards in turn. What the lanes of a warp tell each other is cuda_warps.h's. No tests here.
#pragma once

#include <cstdint>

#include "cuda_warps.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(16) uint4 {  // as aligned as on the device, so that the sanitizer sees a misaligned transaction
  uint32_t x, y, z, w;
};

template <class Word>
Word __ldcs(const Word* from) {
  return *from;
}
template <class Word>
void __stcs(Word* to, const Word& word) {
  *to = word;
}

inline bool turn_around() {
  static bool backwards = false;
  return backwards = !backwards;
}

#define COS_CUDA_LAUNCH(kernel, blocks, stream, ...)                                          \
  do {                                                                                        \
    (void)(stream);                                                                           \
    constexpr unsigned warps = kThreads / ShimWarp::kLanes;                                   \
    const unsigned all = (blocks) * warps;                                                    \
    const bool backwards = turn_around();                                                     \
    for (unsigned i = 0; i < all; ++i) {                                                      \
      const unsigned warp = backwards ? all - 1 - i : i;                                      \
      blockIdx.x = warp / warps;                                                              \
      ShimWarp::current().run(warp % warps * ShimWarp::kLanes, [&] { kernel(__VA_ARGS__); }); \
    }                                                                                         \
  } while (0)
