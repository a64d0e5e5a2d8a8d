// Lets csrc/cuda/kernels.cuh compile with a host compiler and runs its kernels on the CPU: annotations vanish, and a launch
// walks all blocks and threads one after the other. The kernels share no memory and never synchronise, so that is exact.
#pragma once

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

#define COS_CUDA_LAUNCH(kernel, blocks, stream, job)                            \
  do {                                                                          \
    (void)(stream);                                                             \
    for (blockIdx.x = 0; blockIdx.x < (blocks); ++blockIdx.x) {                 \
      for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) kernel(job); \
    }                                                                           \
  } while (0)
