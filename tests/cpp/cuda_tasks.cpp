// Prints what a launch tells its kernel: for every job on the command line (dtype steps rho iterations plane), the symbol of
// the kernel and the bytes of its Task. tests/kernels/cuda_instructions.py runs the machine code with them. Nothing runs here.
//
// plane: 0, one θ for all neurons; else the neurons are [channels, plane] maps with a θ for each channel.
#include "cuda_shim.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#undef COS_CUDA_LAUNCH
#define COS_CUDA_LAUNCH(kernel, blocks, stream, task) show(reinterpret_cast<const void*>(kernel), &(task), sizeof(task))
static void show(const void* kernel, const void* task, size_t bytes) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname) std::abort();
  std::printf("%s ", info.dli_sname);
  for (size_t i = 0; i < bytes; ++i) std::printf("%02x", static_cast<const unsigned char*>(task)[i]);
  std::printf("\n");
}

#include "cuda/kernels.cuh"

namespace {
const void* address(uintptr_t mib) { return reinterpret_cast<const void*>(mib << 20); }
}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i + 4 < argc; i += 5) {
    const auto number = [&](int which) { return std::strtoll(argv[i + which], nullptr, 10); };
    cos_ext::Job job;
    job.dtype = static_cast<cos_ext::DType>(number(0));
    job.steps = number(1);
    job.rho = number(2);
    job.iterations = number(3);
    job.neurons = int64_t{1} << 16;
    job.x = address(1);
    job.spikes = const_cast<void*>(address(2));
    job.x_layout.ndim = 1;
    job.x_layout.size[0] = job.neurons;
    job.x_layout.stride[0] = 1;
    job.spikes_layout = job.x_layout;
    // As if rows were short, so that few bytes hold them.
    job.x_time = job.spikes_time = 4096;
    job.theta.value = 1;
    if (const int64_t plane = number(4)) {
      job.theta.data = address(3);
      job.theta.layout.ndim = 2;
      job.theta.layout.size[0] = job.neurons / plane;
      job.theta.layout.stride[0] = 1;
      job.theta.layout.size[1] = plane;
    }
    cos_ext::cuda::launch(job, 0, 0);
  }
}
