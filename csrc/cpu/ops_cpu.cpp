// The operators on the CPU: neurons split over torch's threads, each part by the kernel of this processor.
#include "../operators.h"
#include "kernels.h"

namespace {

struct CpuLaunch {
  static void run(const cos_ext::Job& job, const cos_ext::Tensor&) {
    using namespace cos_ext::cpu;
    const Kernel kernel = cos_ext::cpu::kernel();
    const int64_t blocks = (job.neurons + kBlock - 1) / kBlock;
    torch::stable::parallel_for(0, blocks, grain(job), [&](int64_t begin, int64_t end) {
      kernel(job, begin * kBlock, end * kBlock < job.neurons ? end * kBlock : job.neurons);
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cos_ext, CPU, m) { COS_EXT_REGISTER(m, CpuLaunch); }
