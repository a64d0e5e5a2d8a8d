// The CPU kernels' interface: neurons [begin, end) of a job, by the best instruction set of this machine.
// No torch, no threads: callers split the range (at multiples of kBlock) and run the parts where they like.
#pragma once

#include <cstdint>

#include "../job.h"

namespace cos_ext::cpu {

// Neurons per group: the state and the watched rows of a group stay in L1. Measured against 1024, 2048 and 4096.
constexpr int64_t kBlock = 512;

using Kernel = void (*)(const Job& job, int64_t begin, int64_t end);

namespace baseline {
void run(const Job& job, int64_t begin, int64_t end);
}
// clang has no pragma that sets the target of what follows; there the baseline is what -march says.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define COS_X86_VARIANTS 1
namespace avx2 {
void run(const Job& job, int64_t begin, int64_t end);
}
namespace avx512 {
void run(const Job& job, int64_t begin, int64_t end);
}
#endif

// "avx512", "avx2" or "baseline": the best that this processor has, or what COS_EXT_CPU_CAPABILITY names.
const char* capability();
Kernel kernel();

// The fewest blocks worth a thread of their own.
inline int64_t grain(const Job& job) {
  const int64_t per_block = kBlock * (job.steps + job.rho);
  return per_block >= 32768 ? 1 : (32768 + per_block - 1) / per_block;
}

}  // namespace cos_ext::cpu
