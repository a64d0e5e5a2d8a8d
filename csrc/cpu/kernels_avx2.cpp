// The CPU kernels for AVX2 and FMA (x86-64-v3); chosen at run time by dispatch.cpp.
#include "kernels.h"
#ifdef COS_X86_VARIANTS
// The standard headers first: their inline functions must stay runnable everywhere.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>
#pragma GCC target("arch=x86-64-v3")
#define COS_ISA avx2
#define COS_VECTOR_BYTES 32
#define COS_VECTORS 2
#include "kernels.inc"
#include "learning.inc"
#include "qcfs.inc"
#include "spike_conv.inc"
#endif
