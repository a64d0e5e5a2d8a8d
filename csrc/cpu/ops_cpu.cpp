// The operators on the CPU: work split over torch's threads, each part by the kernel of this processor.
#include "../operators.h"
#include "kernels.h"

namespace {

using cos_ext::Tensor;

struct CpuLaunch {
  static constexpr int64_t kSlots = 1;
  static void run(const cos_ext::Job& job, const cos_ext::Tensor&) {
    using namespace cos_ext::cpu;
    const Kernel kernel = cos_ext::cpu::kernel();
    const int64_t size = piece(job), pieces = (job.neurons + size - 1) / size;
    torch::stable::parallel_for(0, pieces, grain(job), [&](int64_t begin, int64_t end) {
      kernel(job, begin * size, end * size < job.neurons ? end * size : job.neurons);
    });
  }
};

// [N, C, H, W] with channels innermost in memory, copied where they are not.
Tensor channels_innermost(const Tensor& x) {
  if (x.size(1) == 1 || x.stride(1) == 1) return x;
  using torch::stable::transpose;
  const Tensor last = torch::stable::contiguous(transpose(transpose(x, 1, 2), 2, 3));
  return transpose(transpose(last, 2, 3), 1, 2);
}

// Of a window: strides, paddings, dilations.
struct Window {
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

// What a convolution has to do, but for its output; `in` is x as the kernel reads it, and outlives the job.
cos_ext::cpu::SpikeConv described(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t outputs,
                                  const Window& window, Tensor& in) {
  cos_ext::check_spike_conv(x, weight, bias, outputs);
  cos_ext::cpu::SpikeConv job;
  job.stride_h = window.stride_h, job.stride_w = window.stride_w;
  job.padding_h = window.padding_h, job.padding_w = window.padding_w;
  job.dilation_h = window.dilation_h, job.dilation_w = window.dilation_w;
  job.kernel_h = weight.size(2), job.kernel_w = weight.size(1), job.block = weight.size(4);
  job.images = x.size(0), job.channels = x.size(1), job.height = x.size(2), job.width = x.size(3);
  job.outputs = outputs;
  const auto fit = [](const char* name, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    cos_ext::check_window(name, size, kernel, stride, padding, dilation);
    return cos_ext::windows(size, kernel, stride, padding, dilation);
  };
  job.out_height = fit("height", job.height, job.kernel_h, job.stride_h, job.padding_h, job.dilation_h);
  job.out_width = fit("width", job.width, job.kernel_w, job.stride_w, job.padding_w, job.dilation_w);
  in = channels_innermost(x);
  job.dtype = cos_ext::job_dtype(x.scalar_type());
  job.x = in.const_data_ptr();
  job.image_stride = in.stride(0), job.row_stride = in.stride(2), job.pixel_stride = in.stride(3);
  job.weight = weight.const_data_ptr();
  job.bias = bias ? bias->const_data_ptr() : nullptr;
  return job;
}

Tensor spike_conv2d(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t outputs, int64_t stride_h, int64_t stride_w,
                    int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w) {
  Tensor in;
  auto job = described(x, weight, bias, outputs, {stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w}, in);
  const Tensor made = torch::stable::new_empty(x, {job.images, job.out_height, job.out_width, outputs});
  job.out = made.mutable_data_ptr();
  const auto kernel = cos_ext::cpu::spike_conv();
  torch::stable::parallel_for(0, job.rows(), cos_ext::cpu::grain(job),
                              [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  return torch::stable::transpose(torch::stable::transpose(made, 2, 3), 1, 2);
}

using cos_ext::MaybeDouble, cos_ext::MaybeTensor;

Tensor spike_layer(Tensor x, Tensor weight, MaybeTensor conv_bias, int64_t outputs, int64_t stride_h, int64_t stride_w,
                   int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w, int64_t steps, MaybeTensor theta,
                   double theta_value, MaybeTensor v_init, MaybeDouble v_init_value, MaybeDouble v_reset, int64_t rho,
                   int64_t iterations, int64_t emission, MaybeTensor scale, MaybeTensor bias, MaybeTensor residual,
                   int64_t pool_rows, int64_t pool_columns) {
  Tensor in;
  cos_ext::cpu::SpikeLayer layer;
  layer.conv = described(x, weight, conv_bias, outputs, {stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w}, in);
  const auto& conv = layer.conv;
  STD_TORCH_CHECK(rho >= 0 && (rho == 0 || !v_reset), "rho must be >= 0, and 0 with v_reset, got ", rho);
  STD_TORCH_CHECK(steps >= 1 && conv.images % steps == 0, "steps must divide the batch ", conv.images, ", got ", steps);
  // The currents' shape; without pooling the spikes come here, with it nothing does.
  const Tensor made = torch::stable::new_empty(x, {steps, conv.images / steps, conv.out_height, conv.out_width, outputs});
  const Tensor currents = torch::stable::transpose(torch::stable::transpose(made, 3, 4), 2, 3);
  cos_ext::Builder build(currents, theta, theta_value, v_init, v_init_value);
  build.hard_reset(v_reset);
  if (rho > 0) {
    build.calibrate(rho, iterations);
    build.emission(emission, false);
  }
  build.fuse(scale, bias, residual);
  build.pool(pool_rows, pool_columns);
  const Tensor spikes = build.emit(pool_rows == 0);
  build.launch([&](const cos_ext::Job& neurons, const Tensor&) {
    layer.neurons = neurons;
    const auto kernel = cos_ext::cpu::spike_layer();
    torch::stable::parallel_for(0, layer.units(), cos_ext::cpu::grain(layer),
                                [&](int64_t begin, int64_t end) { kernel(layer, begin, end); });
  });
  return spikes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cos_ext, CPU, m) {
  COS_EXT_REGISTER(m, CpuLaunch);
  m.impl("spike_conv2d", TORCH_BOX(&spike_conv2d));
  m.impl("spike_layer", TORCH_BOX(&spike_layer));
}
