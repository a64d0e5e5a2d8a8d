// The kernels of backpropagation in float32.
#include "../units.h"

COS_BACKWARD_UNIT(, float)
