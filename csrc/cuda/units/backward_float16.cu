// The kernels of backpropagation in float16.
#include "../units.h"

COS_BACKWARD_UNIT(, Half)
