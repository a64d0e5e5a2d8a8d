// The kernels of backpropagation in float64.
#include "../units.h"

COS_BACKWARD_UNIT(, double)
