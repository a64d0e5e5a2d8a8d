// Instantiates every CUDA kernel, without torch, for tests/kernels/cuda_kernels.py and CMake. It never runs.
#include <cuda_runtime.h>

#include "cuda/general.cuh"
#include "cuda/learning.cuh"
#include "cuda/qcfs.cuh"

void compile_kernels(const cos_ext::Job& job, cudaStream_t stream) {
  cos_ext::cuda::launch(job, stream, 0);
  cos_ext::cuda::launch_back(job, nullptr, stream, 0);
  cos_ext::cuda::launch_general(job, stream, 0);
}

void compile_kernels(const cos_ext::Qcfs& job, cudaStream_t stream) { cos_ext::cuda::launch(job, stream); }
