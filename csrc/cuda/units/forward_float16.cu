// The kernels of the neurons and of QCFS in float16.
#include "../units.h"

COS_FORWARD_UNIT(, Half)
