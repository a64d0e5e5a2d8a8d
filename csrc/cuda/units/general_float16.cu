// The kernels of general neurons in float16.
#include "../units.h"

COS_GENERAL_UNIT(, Half)
