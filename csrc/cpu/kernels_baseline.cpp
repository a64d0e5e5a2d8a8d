// The CPU kernels for the compiler's baseline instruction set (any processor).
#define COS_ISA baseline
#define COS_VECTOR_BYTES 16
#define COS_VECTORS 2
#include "kernels.inc"
#include "learning.inc"
#include "qcfs.inc"
#include "spike_conv.inc"
