// The CPU kernels' interface: neurons [begin, end) of a job, by the best instruction set of this machine.
// No torch, no threads: callers split the range (at multiples of piece()) and run the parts where they like.
#pragma once

#include <cstdint>
#include <cstdlib>  // for kernels.inc, which would compile them for its instruction set
#include <new>

#include "../job.h"
#include "qcfs.h"
#include "spike_conv.h"

namespace cos_ext::cpu {

// Neurons per group: the state and the watched rows of a group stay in L1. Measured against 1024, 2048 and 4096.
constexpr int64_t kBlock = 512;

using Kernel = void (*)(const Job& job, int64_t begin, int64_t end);

// Neurons of a group of backpropagation, whose potentials stay in L1 for tens of steps; `begin` is a multiple of it.
constexpr int64_t kBackwardBlock = 256;

namespace baseline {
void run(const Job& job, int64_t begin, int64_t end);
void spike_conv(const SpikeConv& job, Shares& rows);
void spike_layer(const SpikeLayer& layer, Shares& units);
void backward(const Job& job, int64_t begin, int64_t end);
void qcfs(const Qcfs& job, int64_t begin, int64_t end);
}  // namespace baseline
// clang has no pragma that sets the target of what follows; there the baseline is what -march says.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define COS_X86_VARIANTS 1
namespace avx2 {
void run(const Job& job, int64_t begin, int64_t end);
void spike_conv(const SpikeConv& job, Shares& rows);
void spike_layer(const SpikeLayer& layer, Shares& units);
void backward(const Job& job, int64_t begin, int64_t end);
void qcfs(const Qcfs& job, int64_t begin, int64_t end);
}  // namespace avx2
namespace avx512 {
void run(const Job& job, int64_t begin, int64_t end);
void spike_conv(const SpikeConv& job, Shares& rows);
void spike_layer(const SpikeLayer& layer, Shares& units);
void backward(const Job& job, int64_t begin, int64_t end);
void qcfs(const Qcfs& job, int64_t begin, int64_t end);
}  // namespace avx512
#endif

// "avx512", "avx2" or "baseline": the best that this processor has, or what COS_EXT_CPU_CAPABILITY names.
const char* capability();
Kernel kernel();
Kernel backward();

// The neurons that a thread takes at least: whole windows and whole pixels of bits. Ranges may be split at multiples of it.
inline int64_t piece(const Job& job) {
  const int64_t windows = job.pool.rows ? job.pool.unit() : 1;
  const int64_t unit = windows % job.channels ? windows * job.channels : windows;
  return unit * ((kBlock + unit - 1) / unit);
}

// The fewest pieces worth a thread of their own.
inline int64_t grain(const Job& job) {
  const int64_t per_block = piece(job) * (job.steps + job.rho);
  return per_block >= 32768 ? 1 : (32768 + per_block - 1) / per_block;
}

}  // namespace cos_ext::cpu
