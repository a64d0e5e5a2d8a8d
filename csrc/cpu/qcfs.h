// The QCFS activation on a CPU: its kernel, and how the elements are cut. No torch, no threads.
#pragma once

#include "../qcfs_job.h"

namespace cos_ext::cpu {

// Elements whose sum is one part of θ's gradient.
constexpr int64_t kQcfsBlock = 4096;

// Blocks [begin, end).
using QcfsKernel = void (*)(const Qcfs& job, int64_t begin, int64_t end);
QcfsKernel qcfs();

}  // namespace cos_ext::cpu
