// The kernels of the neurons and of QCFS in float32.
#include "../units.h"

COS_FORWARD_UNIT(, float)
