// The kernels of backpropagation in bfloat16.
#include "../units.h"

COS_BACKWARD_UNIT(, BFloat16)
