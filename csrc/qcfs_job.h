// What one launch of the QCFS activation has to do. Plain data; no torch, no arithmetic.
#pragma once

#include <cstdint>

#include "job.h"

namespace cos_ext {

// Elements that lie in one order in all operands, without gaps; those of z's dtype unless said otherwise.
struct Qcfs {
  DType dtype = DType::Float32;
  int64_t elements = 0;
  int64_t levels = 1;
  const void* theta = nullptr;  // one, of the state type
  const void* z = nullptr;
  const void* noise = nullptr;  // null: none
  const void* grad = nullptr;  // of the activation; null: forwards
  void* out = nullptr;  // the activation, or the gradient of z
  double* parts = nullptr;  // with grad: sums of θ's gradient, whose sum it is
  int64_t count = 0;  // of parts
};

constexpr int64_t kMaxLevels = int64_t{1} << 23;  // half a level is a number of float32

}  // namespace cos_ext
