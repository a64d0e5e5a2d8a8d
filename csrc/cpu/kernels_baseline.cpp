// The CPU kernels for the compiler's baseline instruction set (any processor).
#define COS_ISA baseline
#include "kernels.inc"
