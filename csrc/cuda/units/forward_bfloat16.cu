// The kernels of the neurons and of QCFS in bfloat16.
#include "../units.h"

COS_FORWARD_UNIT(, BFloat16)
