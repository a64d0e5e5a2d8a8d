// Picks the CPU kernels' instruction set once per process. Nothing else.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace cos_ext::cpu {
namespace {

struct Choice {
  const char* name;
  Kernel kernel;
  SpikeConvKernel spike_conv;
  SpikeLayerKernel spike_layer;
  Kernel backward;
  QcfsKernel qcfs;
};

Choice choose() {
#ifdef COS_X86_VARIANTS
  __builtin_cpu_init();
  const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  const char* wanted = std::getenv("COS_EXT_CPU_CAPABILITY");
  const auto allows = [&](const char* name) { return !wanted || !std::strcmp(wanted, name); };
  if (has512 && allows("avx512"))
    return {"avx512", avx512::run, avx512::spike_conv, avx512::spike_layer, avx512::backward, avx512::qcfs};
  if (has2 && (allows("avx2") || allows("avx512")))
    return {"avx2", avx2::run, avx2::spike_conv, avx2::spike_layer, avx2::backward, avx2::qcfs};
#endif
  return {"baseline", baseline::run, baseline::spike_conv, baseline::spike_layer, baseline::backward, baseline::qcfs};
}

const Choice& chosen() {
  static const Choice choice = choose();
  return choice;
}

}  // namespace

const char* capability() { return chosen().name; }
Kernel kernel() { return chosen().kernel; }
SpikeConvKernel spike_conv() { return chosen().spike_conv; }
SpikeLayerKernel spike_layer() { return chosen().spike_layer; }
Kernel backward() { return chosen().backward; }
QcfsKernel qcfs() { return chosen().qcfs; }

}  // namespace cos_ext::cpu
