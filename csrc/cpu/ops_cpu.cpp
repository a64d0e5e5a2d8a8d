// The operators on the CPU: work split over torch's threads, each part by the kernel of this processor.
#include "../operators.h"
#include "../qcfs.h"
#include "kernels.h"

namespace {

using cos_ext::MaybeDouble, cos_ext::MaybeTensor, cos_ext::ScalarType, cos_ext::Tensor;

struct CpuLaunch {
  static constexpr int64_t kSlots = 1;
  static void run(const cos_ext::Job& job, const cos_ext::Tensor&) {
    using namespace cos_ext::cpu;
    const Kernel kernel = cos_ext::cpu::kernel();
    const int64_t size = piece(job), pieces = (job.neurons + size - 1) / size;
    if (pieces == 1) return kernel(job, 0, job.neurons);
    torch::stable::parallel_for(0, pieces, grain(job), [&](int64_t begin, int64_t end) {
      kernel(job, begin * size, end * size < job.neurons ? end * size : job.neurons);
    });
  }

  static void back(const cos_ext::Job& job, const cos_ext::Tensor&) {
    using namespace cos_ext::cpu;
    const Kernel kernel = backward();
    const int64_t groups = (job.neurons + kBackwardBlock - 1) / kBackwardBlock;
    const int64_t least = std::max<int64_t>(1, 16384 / (kBackwardBlock * job.steps));
    torch::stable::parallel_for(0, groups, least, [&](int64_t begin, int64_t end) {
      kernel(job, begin * kBackwardBlock, std::min(end * kBackwardBlock, job.neurons));
    });
  }
};

struct CpuQcfs {
  static constexpr uintptr_t kAlignment = 1;
  static int64_t parts(int64_t elements, int64_t) { return (elements + cos_ext::cpu::kQcfsBlock - 1) / cos_ext::cpu::kQcfsBlock; }
  static Tensor total(const Tensor& parts) {
    const double* const each = parts.const_data_ptr<double>();
    const Tensor sum = torch::stable::new_empty(parts, {});
    *sum.mutable_data_ptr<double>() = std::accumulate(each, each + parts.numel(), 0.0);
    return sum;
  }
  static void run(const cos_ext::Qcfs& job, const Tensor&) {
    const auto kernel = cos_ext::cpu::qcfs();
    torch::stable::parallel_for(0, parts(job.elements, 0), 8, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
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

// What a convolution has to do, but for its input and output, whose values are of `type`.
cos_ext::cpu::SpikeConv described(ScalarType type, const Tensor& weight, const std::optional<Tensor>& bias, int64_t outputs,
                                  const Window& window) {
  cos_ext::check_spike_conv(type, weight, bias, outputs);
  cos_ext::cpu::SpikeConv job;
  job.stride_h = window.stride_h, job.stride_w = window.stride_w;
  job.padding_h = window.padding_h, job.padding_w = window.padding_w;
  job.dilation_h = window.dilation_h, job.dilation_w = window.dilation_w;
  job.kernel_h = weight.size(2), job.kernel_w = weight.size(1), job.block = weight.size(4);
  job.channels = weight.size(3), job.outputs = outputs;
  job.dtype = cos_ext::job_dtype(type);
  job.weight = weight.const_data_ptr();
  job.bias = bias ? bias->const_data_ptr() : nullptr;
  return job;
}

// Gives it the sizes of its input, and so of its output.
void set_sizes(cos_ext::cpu::SpikeConv& job, int64_t images, int64_t height, int64_t width) {
  job.images = images, job.height = height, job.width = width;
  const int64_t lines = job.kernel_h * job.channels;
  STD_TORCH_CHECK(width <= std::numeric_limits<int32_t>::max() / lines - 1,
                  "x's width times the inputs of a kernel column must be below 2^31, got ", width, " times ", lines);
  const auto fit = [](const char* name, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    cos_ext::check_window(name, size, kernel, stride, padding, dilation);
    return cos_ext::windows(size, kernel, stride, padding, dilation);
  };
  job.out_height = fit("height", job.height, job.kernel_h, job.stride_h, job.padding_h, job.dilation_h);
  job.out_width = fit("width", job.width, job.kernel_w, job.stride_w, job.padding_w, job.dilation_w);
}

// Gives it x, which is then `in`, as the kernel reads it, and outlives the job.
void read(cos_ext::cpu::SpikeConv& job, const Tensor& x, Tensor& in) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [N, C, H, W]");
  STD_TORCH_CHECK(job.channels == x.size(1), "weight has ", job.channels, " channels, x ", x.size(1));
  set_sizes(job, x.size(0), x.size(2), x.size(3));
  in = channels_innermost(x);
  job.x = in.const_data_ptr();
  job.image_stride = in.stride(0), job.row_stride = in.stride(2), job.pixel_stride = in.stride(3);
}
void read_bits(cos_ext::cpu::SpikeConv& job, const Tensor& x, const Tensor& level) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [N, H, W, ceil(C / 64)]");
  cos_ext::check_bits("x", x, level, {x.size(0), x.size(1), x.size(2), cos_ext::words(job.channels)});
  set_sizes(job, x.size(0), x.size(1), x.size(2));
  job.x = level.const_data_ptr();
  job.bits = static_cast<const uint64_t*>(x.const_data_ptr());
  job.image_stride = job.row_stride = job.pixel_stride = job.channel_stride = 0;
}

// Lets threads run a kernel on shares of a job's units.
template <class Kernel, class Described>
void share(Kernel kernel, const Described& job, int64_t units) {
  const int64_t threads = torch::stable::get_num_threads(), least = cos_ext::cpu::grain(job, threads);
  cos_ext::cpu::Shares shares(0, units, least, threads);
  torch::stable::parallel_for(0, units, least, [&](int64_t, int64_t) { kernel(job, shares); });
}

// Of the values of x, or of the level of its bits.
ScalarType type_of(const Tensor& x, const MaybeTensor& level) { return (level ? *level : x).scalar_type(); }

Tensor spike_conv2d(Tensor x, MaybeTensor level, Tensor weight, std::optional<Tensor> bias, int64_t outputs, int64_t stride_h,
                    int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w) {
  Tensor in;
  const Window window{stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w};
  const ScalarType type = type_of(x, level);
  auto job = described(type, weight, bias, outputs, window);
  level ? read_bits(job, x, *level) : read(job, x, in);
  const Tensor made = torch::stable::new_empty(x, {job.images, job.out_height, job.out_width, outputs}, type);
  job.out = made.mutable_data_ptr();
  share(cos_ext::cpu::spike_conv(), job, job.rows());
  return torch::stable::transpose(torch::stable::transpose(made, 2, 3), 1, 2);
}

// What spike_bits and spike_layer tell of neurons alike.
void set_neurons(cos_ext::Builder& build, MaybeDouble v_reset, int64_t rho, int64_t iterations, int64_t emission,
                 const MaybeTensor& scale, const MaybeTensor& bias, const MaybeTensor& residual,
                 const MaybeTensor& residual_level) {
  STD_TORCH_CHECK(rho >= 0 && (rho == 0 || !v_reset), "rho must be >= 0, and 0 with v_reset, got ", rho);
  build.hard_reset(v_reset);
  if (rho > 0) {
    build.calibrate(rho, iterations);
    build.emission(emission, false);
  }
  build.fuse(scale, bias, residual_level ? std::nullopt : residual);
  if (residual && residual_level) build.fuse_bits(*residual, *residual_level);
}

Tensor spike_bits(Tensor x, MaybeTensor theta, double theta_value, MaybeTensor v_init, MaybeDouble v_init_value,
                  MaybeDouble v_reset, int64_t rho, int64_t iterations, int64_t emission, MaybeTensor scale, MaybeTensor bias,
                  MaybeTensor residual, MaybeTensor residual_level) {
  cos_ext::Builder build(x, theta, theta_value, v_init, v_init_value);
  set_neurons(build, v_reset, rho, iterations, emission, scale, bias, residual, residual_level);
  const Tensor bits = build.emit_bits();
  build.launch(CpuLaunch::run);
  return bits;
}

Tensor spike_layer(Tensor x, MaybeTensor level, Tensor weight, MaybeTensor conv_bias, int64_t outputs, int64_t stride_h,
                   int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w, int64_t steps,
                   MaybeTensor theta, double theta_value, MaybeTensor v_init, MaybeDouble v_init_value, MaybeDouble v_reset,
                   int64_t rho, int64_t iterations, int64_t emission, MaybeTensor scale, MaybeTensor bias, MaybeTensor residual,
                   MaybeTensor residual_level, int64_t pool_rows, int64_t pool_columns, bool to_bits) {
  Tensor in;
  cos_ext::cpu::SpikeLayer layer;
  const ScalarType type = type_of(x, level);
  const Window window{stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w};
  layer.conv = described(type, weight, conv_bias, outputs, window);
  level ? read_bits(layer.conv, x, *level) : read(layer.conv, x, in);
  const auto& conv = layer.conv;
  STD_TORCH_CHECK(steps >= 1 && conv.images % steps == 0, "steps must divide the batch ", conv.images, ", got ", steps);
  // The currents' shape; without pooling the spikes come here, with it nothing does.
  const Tensor made = torch::stable::new_empty(x, {steps, conv.images / steps, conv.out_height, conv.out_width, outputs}, type);
  const Tensor currents = torch::stable::transpose(torch::stable::transpose(made, 3, 4), 2, 3);
  cos_ext::Builder build(currents, theta, theta_value, v_init, v_init_value);
  set_neurons(build, v_reset, rho, iterations, emission, scale, bias, residual, residual_level);
  build.pool(pool_rows, pool_columns);
  const Tensor spikes = to_bits ? build.emit_bits() : build.emit(pool_rows == 0);
  build.launch([&](const cos_ext::Job& neurons, const Tensor&) {
    layer.neurons = neurons;
    share(cos_ext::cpu::spike_layer(), layer, layer.units());
  });
  return spikes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cos_ext, CPU, m) {
  COS_EXT_REGISTER(m, CpuLaunch);
  COS_EXT_REGISTER_QCFS(m, CpuQcfs);
  m.impl("spike_conv2d", COS_EXT_BOX(&spike_conv2d));
  m.impl("spike_bits", COS_EXT_BOX(&spike_bits));
  m.impl("spike_layer", COS_EXT_BOX(&spike_layer));
}
