// The event-driven convolution's interface: output rows [begin, end) of a job, by the best instruction set of this machine.
// No torch, no threads: callers split the rows where they like, and the result is the same.
#pragma once

#include <cstdint>

#include "../job.h"

namespace cos_ext::cpu {

// A 2-d convolution of x [N, C, H, W], channels innermost and dense; out [N, out_height, out_width, outputs], dense.
// weight: [blocks][kernel_w][kernel_h][C][block] in the state type, outputs padded to blocks of 16, 32 or 64.
struct SpikeConv {
  DType dtype = DType::Float32;
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;  // outputs, in the state type; may be null
  void* out = nullptr;
  int64_t images = 0, channels = 0, height = 0, width = 0;
  int64_t image_stride = 0, row_stride = 0, pixel_stride = 0;  // of x, in elements
  int64_t outputs = 0, out_height = 0, out_width = 0, block = 0;
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  int64_t padding_h = 0, padding_w = 0, dilation_h = 1, dilation_w = 1;

  int64_t rows() const { return images * out_height; }
};

using SpikeConvKernel = void (*)(const SpikeConv& job, int64_t begin, int64_t end);

// The fewest rows worth a thread of their own.
inline int64_t grain(const SpikeConv& job) {
  const int64_t per_row = job.kernel_h * job.channels * job.width;
  return per_row >= 32768 ? 1 : (32768 + per_row - 1) / per_row;
}

SpikeConvKernel spike_conv();

}  // namespace cos_ext::cpu
