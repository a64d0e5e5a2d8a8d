// The CPU kernels for AVX-512 (x86-64-v4); chosen at run time by dispatch.cpp.
#include "kernels.h"
#ifdef COS_X86_VARIANTS
// The standard headers first: their inline functions must stay runnable everywhere.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define COS_ISA avx512
#define COS_VECTOR_BYTES 64
#define COS_VECTORS 4
#include "kernels.inc"
#include "learning.inc"
#include "qcfs.inc"
#include "spike_conv.inc"
#endif
