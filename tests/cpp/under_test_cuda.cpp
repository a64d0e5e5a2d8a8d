// The bodies of the CUDA kernels, run on the host by cuda_shim.h, as the tests call them. No test here.
#include "cuda_shim.h"

#include <memory>

#include "cuda/general.cuh"
#include "cuda/learning.cuh"
#include "cuda/qcfs.cuh"
#include "under_test.h"

namespace cos_ext::test {

const char* tested() { return "CUDA kernels on the host"; }

namespace {
int64_t cache() {  // streaming stores and plain ones
  static int64_t calls = 0;
  return ++calls % 2 ? 0 : INT64_MAX;
}
}  // namespace

void run_kernel(const Job& job) { job.general.on ? cuda::launch_general(job, 0, cache()) : cuda::launch(job, 0, cache()); }

void run_backward(const Job& job) {
  // Exactly as much room as there must be, as aligned as a device's.
  const size_t bytes = static_cast<size_t>(cuda::starts_size(job)) * (job.dtype == DType::Float64 ? 8 : 4);
  const std::unique_ptr<char[]> starts(new char[bytes]);
  cuda::launch_back(job, starts.get(), 0, cache());
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
