// The event-driven convolution against a plain loop that adds in the same order, with every buffer exactly as large as it must
// be.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "core/dtypes.h"
#include "cpu/kernels.h"
#include "tests.h"

namespace cos_ext::test {
namespace {

using cpu::SpikeConv;

template <class S>
S plain(const SpikeConv& job, const std::vector<S>& x, const std::vector<S>& weight, const std::vector<S>& bias, int64_t row,
        int64_t column, int64_t output) {
  const int64_t block = output / job.block;
  const int64_t image = row / job.out_height, top = row % job.out_height * job.stride_h - job.padding_h;
  S sum = bias[static_cast<size_t>(output)];
  for (int64_t j = 0; j < job.kernel_w; ++j) {
    for (int64_t k = 0; k < job.kernel_h; ++k) {
      for (int64_t c = 0; c < job.channels; ++c) {
        const int64_t y = top + k * job.dilation_h, at = column * job.stride_w - job.padding_w + j * job.dilation_w;
        if (y < 0 || y >= job.height || at < 0 || at >= job.width) continue;
        const S value = x[static_cast<size_t>(((image * job.height + y) * job.width + at) * job.channels + c)];
        if (value == 0) continue;
        const int64_t line = ((block * job.kernel_w + j) * job.kernel_h + k) * job.channels + c;
        const S product = weight[static_cast<size_t>(line * job.block + output % job.block)] * value;
        sum += product;
      }
    }
  }
  return sum;
}

// Values of [pixels, channels] that are not 0, as bits.
template <class T>
std::vector<uint64_t> bits_of(const T* values, int64_t pixels, int64_t channels) {
  std::vector<uint64_t> bits(static_cast<size_t>(pixels * words(channels)));
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t c = 0; c < channels; ++c) {
      const bool on = to_state(values[pixel * channels + c]) != 0;
      bits[static_cast<size_t>(pixel * words(channels) + c / 64)] |= static_cast<uint64_t>(on) << (c % 64);
    }
  }
  return bits;
}

// All images are the steps of one sample: the neurons in one pass, beside those on the currents.
template <class T>
void layer(const SpikeConv& conv, T* currents) {
  cpu::SpikeLayer layer;
  layer.conv = conv;
  layer.conv.out = nullptr;
  Job& neurons = layer.neurons;
  neurons.dtype = conv.dtype;
  neurons.neurons = conv.out_height * conv.out_width * conv.outputs;
  neurons.steps = neurons.rho = conv.images;
  neurons.iterations = 1;
  neurons.theta.value = 0.5;
  neurons.x_layout = neurons.spikes_layout = make_layout({neurons.neurons}, {1}, {0});
  neurons.x_time = neurons.spikes_time = neurons.neurons;
  const auto size = static_cast<size_t>(neurons.steps * neurons.neurons);
  const auto one = exact(std::vector<T>(size)), two = exact(std::vector<T>(size));
  neurons.x = currents, neurons.spikes = two.get();
  cpu::kernel()(neurons, 0, neurons.neurons);
  neurons.x = nullptr, neurons.spikes = one.get();
  const int64_t middle = layer.units() / 2;
  cpu::Shares before(0, middle, 1, 1), after(middle, layer.units(), 1, 1);
  cpu::spike_layer()(layer, before);
  cpu::spike_layer()(layer, after);
  for (size_t i = 0; i < size; ++i) check(same(one[i], two[i]), "spike_layer", static_cast<int64_t>(i), conv.outputs);

  // The spikes as bits, and again with themselves as a residual, which comes as values or as bits.
  const int64_t pixels = conv.images * conv.out_height * conv.out_width;
  const auto expected = bits_of(two.get(), pixels, conv.outputs);
  const auto bits = exact(std::vector<uint64_t>(expected.size())), again = exact(bits_of(two.get(), pixels, conv.outputs));
  neurons.spikes = nullptr;
  neurons.channels = conv.outputs;
  neurons.bits = {bits.get(), conv.out_height * conv.out_width * words(conv.outputs)};
  cpu::Shares all(0, layer.units(), 2, 2);
  cpu::spike_layer()(layer, all);
  for (size_t i = 0; i < expected.size(); ++i) check(bits[i] == expected[i], "bits", static_cast<int64_t>(i), conv.outputs);

  const T level = FromState<T>::call(state_t<T>(0.5));
  Job separate = neurons;
  separate.bits = {};
  separate.x = currents, separate.residual = two.get(), separate.spikes = one.get();
  separate.residual_layout = separate.x_layout;
  separate.residual_time = separate.x_time;
  cpu::kernel()(separate, 0, separate.neurons);
  neurons.residual_bits = {again.get(), neurons.bits.time};
  neurons.residual_level = &level;
  cpu::Shares more(0, layer.units(), 2, 2);
  cpu::spike_layer()(layer, more);
  const auto with = bits_of(one.get(), pixels, conv.outputs);
  for (size_t i = 0; i < with.size(); ++i) check(bits[i] == with[i], "residual bits", static_cast<int64_t>(i), conv.outputs);
}

template <class T>
void convolution(std::mt19937& random, DType dtype) {
  using S = state_t<T>;
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  const int64_t channels[] = {1, 3, 17, 63, 64, 65, 130}, outputs[] = {1, 16, 17, 32, 40, 64, 65};
  SpikeConv job;
  job.dtype = dtype;
  job.images = 1 + below(2), job.channels = channels[below(7)], job.outputs = outputs[below(7)];
  job.height = 1 + below(7), job.width = below(4) ? 1 + below(9) : 40;
  job.kernel_h = 1 + below(4), job.kernel_w = 1 + below(4);
  job.stride_h = 1 + below(3), job.stride_w = 1 + below(3);
  job.dilation_h = 1 + below(2), job.dilation_w = 1 + below(2);
  job.padding_h = below(3), job.padding_w = below(3);
  const int64_t rows = job.height + 2 * job.padding_h - job.dilation_h * (job.kernel_h - 1) - 1;
  const int64_t columns = job.width + 2 * job.padding_w - job.dilation_w * (job.kernel_w - 1) - 1;
  if (rows < 0 || columns < 0) return;
  job.out_height = rows / job.stride_h + 1, job.out_width = columns / job.stride_w + 1;
  job.pixel_stride = job.channels, job.row_stride = job.channels * job.width, job.image_stride = job.row_stride * job.height;
  job.block = job.outputs > 32 ? 64 : job.outputs > 16 ? 32 : 16;
  const int64_t density = below(5), blocks = (job.outputs + job.block - 1) / job.block;

  const bool one_level = below(2);
  std::normal_distribution<float> normal;
  std::vector<T> stored(static_cast<size_t>(job.images * job.image_stride));
  std::vector<S> x;
  for (T& value : stored) {
    value = FromState<T>::call(below(4) >= density ? S(0) : one_level ? S(0.7) : static_cast<S>(normal(random)));
    x.push_back(to_state(value));
  }
  std::vector<S> weight(static_cast<size_t>(blocks * job.kernel_w * job.kernel_h * job.channels * job.block));
  for (S& value : weight) value = static_cast<S>(normal(random));
  std::vector<S> bias(static_cast<size_t>(job.outputs));
  for (S& value : bias) value = static_cast<S>(normal(random));

  const auto in = exact(stored);
  const auto packed = exact(weight), start = exact(bias);
  const auto out = exact(std::vector<T>(static_cast<size_t>(job.rows() * job.out_width * job.outputs)));
  job.x = in.get(), job.weight = packed.get(), job.bias = start.get(), job.out = out.get();
  const int64_t middle = below(job.rows() + 1);  // split in two, as threads would
  cpu::Shares before(0, middle, 3, 1), after(middle, job.rows(), 1, 1);
  cpu::spike_conv()(job, before);
  cpu::spike_conv()(job, after);
  for (int64_t row = 0; row < job.rows(); ++row) {
    for (int64_t column = 0; column < job.out_width; ++column) {
      for (int64_t output = 0; output < job.outputs; ++output) {
        const T expected = FromState<T>::call(plain(job, x, weight, bias, row, column, output));
        check(same(out[static_cast<size_t>((row * job.out_width + column) * job.outputs + output)], expected), "spike_conv", row,
              output);
      }
    }
  }
  layer(job, out.get());

  if (!one_level) return;
  const auto marks = exact(bits_of(in.get(), job.images * job.height * job.width, job.channels));
  const auto again = exact(std::vector<T>(static_cast<size_t>(job.rows() * job.out_width * job.outputs)));
  const T level = FromState<T>::call(S(0.7));
  job.x = &level, job.bits = marks.get(), job.out = again.get();
  job.image_stride = job.row_stride = job.pixel_stride = job.channel_stride = 0;
  cpu::Shares all(0, job.rows(), 2, 2);
  cpu::spike_conv()(job, all);
  for (int64_t i = 0; i < job.rows() * job.out_width * job.outputs; ++i)
    check(same(again[i], out[i]), "conv of bits", i, job.outputs);
  layer(job, again.get());
}

}  // namespace

void spike_convolutions() {
  std::mt19937 random(13);
  for (int i = 0; i < 150; ++i) {
    convolution<float>(random, DType::Float32);
    convolution<double>(random, DType::Float64);
    convolution<Half>(random, DType::Float16);
    convolution<BFloat16>(random, DType::BFloat16);
  }
}

}  // namespace cos_ext::test
