// The kernels of general neurons in bfloat16.
#include "../units.h"

COS_GENERAL_UNIT(, BFloat16)
