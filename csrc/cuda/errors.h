// What a failed call of the CUDA runtime says: what was being done, what CUDA says, and what to do. No torch, no kernels here.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace cos_ext::cuda {

inline std::string remedy(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver: return "; update the NVIDIA driver, or build cos_ext with an older CUDA toolkit";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
      return "; python -m cos_ext info lists the devices and the architectures of this build: build again with the device's in "
             "TORCH_CUDA_ARCH_LIST";
    default: return "";
  }
}

// `doing`: "ask for the size of the L2 cache".
inline std::string failure(const char* doing, cudaError_t error) {
  return std::string("cos_ext could not ") + doing + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")" +
         remedy(error);
}

}  // namespace cos_ext::cuda
