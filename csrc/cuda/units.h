// What is compiled in files of their own (units/), side by side: of a storage type, the kernels of the neurons and of QCFS,
// those of general neurons, and those of backpropagation. `prefix` is `extern` where they are launched, and nothing in their
// file. No kernels here.
#pragma once

#include <cuda_runtime.h>

#include "general.cuh"
#include "learning.cuh"
#include "qcfs.cuh"

#define COS_FORWARD_UNIT(prefix, T)                                                   \
  namespace cos_ext::cuda {                                                           \
  prefix template void launch_as<T, cudaStream_t>(const Job&, cudaStream_t, int64_t); \
  prefix template void launch_qcfs_as<T, cudaStream_t>(Qcfs, cudaStream_t);           \
  }
#define COS_BACKWARD_UNIT(prefix, T)                                                              \
  namespace cos_ext::cuda {                                                                       \
  prefix template void launch_back_as<T, cudaStream_t>(const Job&, void*, cudaStream_t, int64_t); \
  }
#define COS_GENERAL_UNIT(prefix, T)                                                           \
  namespace cos_ext::cuda {                                                                   \
  prefix template void launch_general_as<T, cudaStream_t>(const Job&, cudaStream_t, int64_t); \
  }
