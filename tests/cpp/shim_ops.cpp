// The operators cos_ext_cuda_on_host::*: the schemas, checks and operator bodies of cos_ext::*, over the bodies of the CUDA
// kernels run on the host by cuda_shim.h. Built and loaded by tests/conftest.py; never part of the package.
#include "cuda_shim.h"

#define COS_EXT_LIBRARY cos_ext_cuda_on_host
#include "ops.cpp"

#include "cuda/general.cuh"
#include "cuda/learning.cuh"
#include "cuda/qcfs.cuh"
#include "operators.h"
#include "qcfs.h"

namespace {

struct ShimLaunch {
  static constexpr int64_t kSlots = 3;
  // Streaming stores and plain ones.
  static int64_t cache() {
    static int64_t calls = 0;
    return ++calls % 2 ? 0 : INT64_MAX;
  }
  static void run(const cos_ext::Job& job, const cos_ext::Tensor&) {
    job.general.on ? cos_ext::cuda::launch_general(job, 0, cache()) : cos_ext::cuda::launch(job, 0, cache());
  }
  static void back(const cos_ext::Job& job, const cos_ext::Tensor& x) {
    const auto starts = torch::stable::new_empty(x, {cos_ext::cuda::starts_size(job)}, cos_ext::state_type(x.scalar_type()));
    cos_ext::cuda::launch_back(job, starts.mutable_data_ptr(), 0, cache());
  }
};

struct ShimQcfs {
  static constexpr uintptr_t kAlignment = 16;
  static int64_t parts(int64_t elements, int64_t bytes) { return cos_ext::cuda::qcfs_threads(elements, bytes); }
  static cos_ext::Tensor total(const cos_ext::Tensor& parts) { return torch::stable::sum(parts); }
  static void run(const cos_ext::Qcfs& job, const cos_ext::Tensor&) { cos_ext::cuda::launch(job, 0); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cos_ext_cuda_on_host, CPU, m) {
  COS_EXT_REGISTER(m, ShimLaunch);
  COS_EXT_REGISTER_QCFS(m, ShimQcfs);
}
