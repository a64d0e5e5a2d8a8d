// The event-driven convolution's interface: output rows of a job, by the best instruction set of this machine.
// No torch, no threads: callers let several threads take from the same shares, and the result is the same.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../job.h"

namespace cos_ext::cpu {

// A 2-d convolution of x [N, C, H, W], channels innermost and dense; out [N, out_height, out_width, outputs], dense.
// Where `bits` is not null, [N, H, W, words(C)] (BitPlanes), x is the level of spikes and all of its strides are 0.
// weight: [blocks][kernel_w][kernel_h][C][block] in the state type, outputs padded to blocks of 16, 32 or 64.
struct SpikeConv {
  DType dtype = DType::Float32;
  const void* x = nullptr;
  const uint64_t* bits = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;  // outputs, in the state type; may be null
  void* out = nullptr;
  int64_t images = 0, channels = 0, height = 0, width = 0;
  int64_t image_stride = 0, row_stride = 0, pixel_stride = 0, channel_stride = 1;  // of x, in elements
  int64_t outputs = 0, out_height = 0, out_width = 0, block = 0;
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  int64_t padding_h = 0, padding_w = 0, dilation_h = 1, dilation_w = 1;

  int64_t rows() const { return images * out_height; }
  bool many_weights() const { return outputs * channels * kernel_h * kernel_w > 131072; }  // more than L2 holds beside the rest
};

// A convolution and the neurons that read it. Its images are those of all steps of all samples, step by step; conv.out and
// neurons.x play no part: the currents of a unit, a few output rows of a sample at all steps, stay in a thread's memory.
struct SpikeLayer {
  SpikeConv conv;
  Job neurons;

  int64_t samples() const { return conv.images / neurons.steps; }
  // Of a unit: whole windows of pooling, at most so many that the currents stay near.
  int64_t rows() const {
    constexpr int64_t kCurrents = 65536;  // measured: fewer, and their inputs are looked at more often
    const int64_t least = neurons.pool.rows ? neurons.pool.rows : 1;
    const int64_t fit = kCurrents / (neurons.steps * least * conv.out_width * conv.outputs);
    return std::min(conv.out_height, least * std::max<int64_t>(fit, 1));
  }
  int64_t units_of_sample() const { return (conv.out_height + rows() - 1) / rows(); }
  int64_t units() const { return samples() * units_of_sample(); }
};

// Units of work that threads take until there are none, many of them first: what they cost follows the spikes, and these lie
// where they like.
class Shares {
 public:
  Shares(int64_t begin, int64_t end, int64_t least, int64_t threads)
      : next_(begin), end_(end), least_(least), split_(2 * threads) {}

  bool take(int64_t& begin, int64_t& end) {
    begin = next_.load(std::memory_order_relaxed);
    do {
      if (begin >= end_) return false;
      end = std::min(end_, begin + std::max(least_, (end_ - begin) / split_));
    } while (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed));
    return true;
  }

 private:
  std::atomic<int64_t> next_;
  const int64_t end_, least_, split_;
};

using SpikeConvKernel = void (*)(const SpikeConv& job, Shares& rows);
using SpikeLayerKernel = void (*)(const SpikeLayer& layer, Shares& units);

// The fewest units that a thread takes at a time: enough to be worth it, and, where weights are read anew for every few rows,
// all of its own.
inline int64_t grain(const SpikeConv& job, int64_t threads) {
  const int64_t per_row = job.kernel_h * job.channels * job.width;
  const int64_t worth = per_row >= 32768 ? 1 : (32768 + per_row - 1) / per_row;
  return job.many_weights() ? std::max(worth, (job.rows() + threads - 1) / threads) : worth;
}
inline int64_t grain(const SpikeLayer& layer, int64_t) {
  const int64_t per_unit = layer.conv.kernel_h * layer.conv.channels * layer.conv.width * layer.rows() * layer.neurons.steps;
  return per_unit >= 32768 ? 1 : (32768 + per_unit - 1) / per_unit;
}

SpikeConvKernel spike_conv();
SpikeLayerKernel spike_layer();

}  // namespace cos_ext::cpu
