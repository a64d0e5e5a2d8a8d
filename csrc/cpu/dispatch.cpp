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

#ifdef COS_X86_VARIANTS
// All that the compiler may use in kernels_avx2.cpp (x86-64-v3) beyond the baseline, and in kernels_avx512.cpp (x86-64-v4)
// beyond that. Feature by feature: GCC 11 knows no name for the levels. tests/test_build.py compares with the compiler's list.
bool has_v3() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("sse3") && __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") &&
         __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("cmpxchg16b") &&
         __builtin_cpu_supports("lahf_lm") && __builtin_cpu_supports("xsave") && __builtin_cpu_supports("osxsave") &&
         __builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("movbe");
}
bool has_v4() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

Choice choose() {
#ifdef COS_X86_VARIANTS
  const bool has2 = has_v3(), has512 = has2 && has_v4();
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
