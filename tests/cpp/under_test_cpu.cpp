// The CPU kernels of the chosen instruction set, as the tests call them. No test here.
#include "cpu/kernels.h"
#include "under_test.h"

namespace cos_ext::test {

const char* tested() { return cpu::capability(); }

void run_kernel(const Job& job) {
  // Split in two, as threads would.
  const int64_t piece = cpu::piece(job), middle = job.neurons / 2 / piece * piece;
  cpu::kernel()(job, 0, middle);
  cpu::kernel()(job, middle, job.neurons);
}

void run_backward(const Job& job) {
  const int64_t middle = job.neurons / 2 / cpu::kBackwardBlock * cpu::kBackwardBlock;
  cpu::backward()(job, 0, middle);
  cpu::backward()(job, middle, job.neurons);
}

bool packed(const Job& job) { return job.x_layout.dense() && job.spikes_layout.dense(); }

bool pools_any_window() { return true; }

int64_t qcfs_parts(int64_t elements, int64_t) { return (elements + cpu::kQcfsBlock - 1) / cpu::kQcfsBlock; }
void run_qcfs(const Qcfs& job) {
  const int64_t blocks = qcfs_parts(job.elements, 0);
  cpu::qcfs()(job, 0, blocks / 2);
  cpu::qcfs()(job, blocks / 2, blocks);
}

}  // namespace cos_ext::test
