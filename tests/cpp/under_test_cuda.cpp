// The bodies of the CUDA kernels, run on the host by cuda_shim.h, as the tests call them. No test here.
#include "cuda_shim.h"

#include "cuda/kernels.cuh"
#include "cuda/qcfs.cuh"
#include "under_test.h"

namespace cos_ext::test {

const char* tested() { return "CUDA kernels on the host"; }

void run_kernel(const Job& job) {
  static int64_t calls = 0;
  cuda::launch(job, 0, ++calls % 2 ? 0 : INT64_MAX);  // streaming stores and plain ones
}

bool packed(const Job& job) {
  const int64_t bytes = job.dtype == DType::Float64 ? 8 : job.dtype == DType::Float32 ? 4 : 2;
  cuda::Task task;
  return cuda::make_task(task, job, 16 / bytes, bytes, job.dtype == DType::Float64 ? 8 : 4);
}

bool pools_any_window() { return false; }

void run_qcfs(const Qcfs& job) { cuda::launch(job, 0); }
int64_t qcfs_parts(int64_t elements, int64_t bytes) { return cuda::qcfs_threads(elements, bytes); }

}  // namespace cos_ext::test
