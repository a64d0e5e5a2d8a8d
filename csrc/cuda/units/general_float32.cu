// The kernels of general neurons in float32.
#include "../units.h"

COS_GENERAL_UNIT(, float)
