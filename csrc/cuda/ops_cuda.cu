// The operators on CUDA devices: device guard, current stream, the memory that a kernel needs beside, one launch, launch check.
// The kernels are compiled in units/.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../operators.h"
#include "../qcfs.h"
#include "errors.h"
#include "units.h"

COS_FORWARD_UNIT(extern, float)
COS_FORWARD_UNIT(extern, double)
COS_FORWARD_UNIT(extern, cos_ext::Half)
COS_FORWARD_UNIT(extern, cos_ext::BFloat16)
COS_GENERAL_UNIT(extern, float)
COS_GENERAL_UNIT(extern, double)
COS_GENERAL_UNIT(extern, cos_ext::Half)
COS_GENERAL_UNIT(extern, cos_ext::BFloat16)
COS_BACKWARD_UNIT(extern, float)
COS_BACKWARD_UNIT(extern, double)
COS_BACKWARD_UNIT(extern, cos_ext::Half)
COS_BACKWARD_UNIT(extern, cos_ext::BFloat16)

namespace {

void check(const char* doing, cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, cos_ext::cuda::failure(doing, error)); }
void check_launch() { check("launch a kernel", cudaGetLastError()); }

// Where a kernel goes: a tensor's device and its current stream.
struct Place {
  explicit Place(const cos_ext::Tensor& x) : device(x.get_device_index()), guard(device) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
    stream = static_cast<cudaStream_t>(current);
  }
  // Of the L2 cache, in bytes.
  int64_t cache() const {
    int size = 0;
    check("ask for the size of the L2 cache", cudaDeviceGetAttribute(&size, cudaDevAttrL2CacheSize, device));
    return size;
  }

  int32_t device;
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;
};

void check_size(const cos_ext::Job& job) {
  STD_TORCH_CHECK(job.neurons <= ((int64_t{1} << 31) - 1) * cos_ext::cuda::kThreads, "too many neurons for one launch");
}

struct CudaLaunch {
  static constexpr int64_t kSlots = 64;  // cos_ext/_ops.py knows it, too

  static void run(const cos_ext::Job& job, const cos_ext::Tensor& x) {
    STD_TORCH_CHECK(job.pool.rows == 0 || (job.pool.rows == 2 && job.pool.columns == 2), "pool must be 2 x 2 on CUDA, got ",
                    job.pool.rows, " x ", job.pool.columns);
    check_size(job);
    const Place place(x);
    job.general.on ? cos_ext::cuda::launch_general(job, place.stream, place.cache())
                   : cos_ext::cuda::launch(job, place.stream, place.cache());
    check_launch();
  }
  static void back(const cos_ext::Job& job, const cos_ext::Tensor& x) {
    check_size(job);
    const Place place(x);
    const auto starts = torch::stable::new_empty(x, {cos_ext::cuda::starts_size(job)}, cos_ext::state_type(x.scalar_type()));
    cos_ext::cuda::launch_back(job, starts.mutable_data_ptr(), place.stream, place.cache());
    check_launch();
  }
};

struct CudaQcfs {
  static constexpr uintptr_t kAlignment = 16;
  static int64_t parts(int64_t elements, int64_t bytes) { return cos_ext::cuda::qcfs_threads(elements, bytes); }
  static cos_ext::Tensor total(const cos_ext::Tensor& parts) { return torch::stable::sum(parts); }

  static void run(const cos_ext::Qcfs& job, const cos_ext::Tensor& z) {
    const Place place(z);
    cos_ext::cuda::launch(job, place.stream);
    check_launch();
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cos_ext, CUDA, m) {
  COS_EXT_REGISTER(m, CudaLaunch);
  COS_EXT_REGISTER_QCFS(m, CudaQcfs);
}
