// Instantiates every CUDA kernel, without torch, so that CI compiles them for every architecture. It never runs.
#include <cuda_runtime.h>

#include "cuda/kernels.cuh"

void compile_kernels(const cos_ext::Job& job, cudaStream_t stream) { cos_ext::cuda::launch(job, stream); }
