// Lets csrc/cuda/*.cuh compile with a host compiler and runs its kernels on the CPU: annotations vanish, vector types
// and cache hints become plain loads and stores, and a launch walks all blocks and threads one after the other. The kernels
// share no memory and never synchronise, so that is exact. No tests here.
#pragma once

#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct ShimIndex {
  unsigned x = 0;
};
inline thread_local ShimIndex threadIdx, blockIdx;

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

#define COS_CUDA_LAUNCH(kernel, blocks, stream, ...)                                    \
  do {                                                                                  \
    (void)(stream);                                                                     \
    for (blockIdx.x = 0; blockIdx.x < (blocks); ++blockIdx.x) {                         \
      for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) kernel(__VA_ARGS__); \
    }                                                                                   \
  } while (0)
