// The kernels of general neurons in float64.
#include "../units.h"

COS_GENERAL_UNIT(, double)
