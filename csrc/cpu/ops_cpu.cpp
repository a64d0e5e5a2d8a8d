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

Tensor spike_conv2d(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t outputs, int64_t stride_h, int64_t stride_w,
                    int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w) {
  cos_ext::check_spike_conv(x, weight, bias, outputs);
  cos_ext::cpu::SpikeConv job;
  job.stride_h = stride_h, job.stride_w = stride_w;
  job.padding_h = padding_h, job.padding_w = padding_w;
  job.dilation_h = dilation_h, job.dilation_w = dilation_w;
  job.kernel_h = weight.size(2), job.kernel_w = weight.size(1), job.block = weight.size(4);
  job.images = x.size(0), job.channels = x.size(1), job.height = x.size(2), job.width = x.size(3);
  job.outputs = outputs;
  cos_ext::check_window("height", job.height, job.kernel_h, stride_h, padding_h, dilation_h);
  cos_ext::check_window("width", job.width, job.kernel_w, stride_w, padding_w, dilation_w);
  job.out_height = cos_ext::windows(job.height, job.kernel_h, stride_h, padding_h, dilation_h);
  job.out_width = cos_ext::windows(job.width, job.kernel_w, stride_w, padding_w, dilation_w);
  const Tensor in = channels_innermost(x);
  const Tensor made = torch::stable::new_empty(x, {job.images, job.out_height, job.out_width, outputs});
  job.dtype = cos_ext::job_dtype(x.scalar_type());
  job.x = in.const_data_ptr();
  job.image_stride = in.stride(0), job.row_stride = in.stride(2), job.pixel_stride = in.stride(3);
  job.weight = weight.const_data_ptr();
  job.bias = bias ? bias->const_data_ptr() : nullptr;
  job.out = made.mutable_data_ptr();
  const auto kernel = cos_ext::cpu::spike_conv();
  torch::stable::parallel_for(0, job.rows(), cos_ext::cpu::grain(job),
                              [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  return torch::stable::transpose(torch::stable::transpose(made, 2, 3), 1, 2);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cos_ext, CPU, m) {
  COS_EXT_REGISTER(m, CpuLaunch);
  m.impl("spike_conv2d", TORCH_BOX(&spike_conv2d));
}
