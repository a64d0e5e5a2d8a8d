// What neurons see where other passes are fused into theirs: x · scale + bias, then + residual. Rounded to the storage type after
// each, as the separate passes would have stored it; without fused multiply-add. No memory layout, no torch.
#pragma once

#include "dtypes.h"
#include "macros.h"

namespace cos_ext {

template <class T>
COS_HD T affine(T x, state_t<T> scale, state_t<T> bias) {
  return FromState<T>::call(to_state(x) * scale + bias);
}
template <class T>
COS_HD T with_residual(T x, T residual) {
  return FromState<T>::call(to_state(x) + to_state(residual));
}

}  // namespace cos_ext
