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

// A copy on the heap, so that a step beside it is seen.
template <class E>
std::unique_ptr<E[]> exact(const std::vector<E>& from) {
  std::unique_ptr<E[]> made(new E[from.size()]);
  std::copy(from.begin(), from.end(), made.get());
  return made;
}

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
  cpu::spike_layer()(layer, 0, middle);
  cpu::spike_layer()(layer, middle, layer.units());
  for (size_t i = 0; i < size; ++i) check(same(one[i], two[i]), "spike_layer", static_cast<int64_t>(i), conv.outputs);
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
  cpu::spike_conv()(job, 0, middle);
  cpu::spike_conv()(job, middle, job.rows());
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
