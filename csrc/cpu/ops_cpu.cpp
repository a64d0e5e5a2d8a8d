// The operators on the CPU: neurons split over torch's threads, each part by the kernel of this processor.
#include "../operators.h"
#include "kernels.h"

namespace {

struct CpuLaunch {
  static constexpr int64_t kSlots = 1;
  static void run(const cos_ext::Job& job, const cos_ext::Tensor&) {
    using namespace cos_ext::cpu;
    const Kernel kernel = cos_ext::cpu::kernel();
    const int64_t size = piece(job), pieces = (job.neurons + size - 1) / size;
    torch::stable::parallel_for(0, pieces, grain(job), [&](int64_t begin, int64_t end) {
      kernel(job, begin * size, end * size < job.neurons ? end * size : job.neurons);
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cos_ext, CPU, m) { COS_EXT_REGISTER(m, CpuLaunch); }
