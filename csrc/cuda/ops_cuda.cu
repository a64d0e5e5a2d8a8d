// The operators on CUDA devices: device guard, current stream, the memory that a kernel needs beside, one launch, launch check.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../operators.h"
#include "../qcfs.h"
#include "general.cuh"
#include "learning.cuh"
#include "qcfs.cuh"

namespace {

// Where a kernel goes: x's device and its current stream.
struct Place {
  explicit Place(const cos_ext::Job& job, const cos_ext::Tensor& x) : guard(x.get_device_index()) {
    const auto device = x.get_device_index();
    void* current = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &current) == 0, "no current CUDA stream");
    stream = static_cast<cudaStream_t>(current);
    STD_TORCH_CHECK(job.neurons <= ((int64_t{1} << 31) - 1) * cos_ext::cuda::kThreads, "too many neurons for one launch");
    STD_TORCH_CHECK(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device) == cudaSuccess, "no L2 cache size");
  }

  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;
  int cache = 0;
};

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "cos_ext kernel launch failed: ", cudaGetErrorString(error));
}

struct CudaLaunch {
  static constexpr int64_t kSlots = 64;  // cos_ext/_ops.py knows it, too

  static void run(const cos_ext::Job& job, const cos_ext::Tensor& x) {
    STD_TORCH_CHECK(job.pool.rows == 0 || (job.pool.rows == 2 && job.pool.columns == 2), "pool must be 2 x 2 on CUDA, got ",
                    job.pool.rows, " x ", job.pool.columns);
    const Place place(job, x);
    job.general.on ? cos_ext::cuda::launch_general(job, place.stream, place.cache)
                   : cos_ext::cuda::launch(job, place.stream, place.cache);
    check_launch();
  }
  static void back(const cos_ext::Job& job, const cos_ext::Tensor& x) {
    const Place place(job, x);
    const auto starts = torch::stable::new_empty(x, {cos_ext::cuda::starts_size(job)}, cos_ext::state_type(x.scalar_type()));
    cos_ext::cuda::launch_back(job, starts.mutable_data_ptr(), place.stream, place.cache);
    check_launch();
  }
};

struct CudaQcfs {
  static constexpr uintptr_t kAlignment = 16;
  static int64_t parts(int64_t elements, int64_t bytes) { return cos_ext::cuda::qcfs_threads(elements, bytes); }
  static cos_ext::Tensor total(const cos_ext::Tensor& parts) { return torch::stable::sum(parts); }

  static void run(const cos_ext::Qcfs& job, const cos_ext::Tensor& z) {
    const auto device = z.get_device_index();
    torch::stable::accelerator::DeviceGuard guard(device);
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "no current CUDA stream");
    cos_ext::cuda::launch(job, static_cast<cudaStream_t>(stream));
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "cos_ext kernel launch failed: ", cudaGetErrorString(error));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cos_ext, CUDA, m) {
  COS_EXT_REGISTER(m, CudaLaunch);
  COS_EXT_REGISTER_QCFS(m, CudaQcfs);
}
