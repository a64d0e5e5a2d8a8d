// The kernels of the neurons and of QCFS in float64.
#include "../units.h"

COS_FORWARD_UNIT(, double)
