// The bodies of qcfs and qcfs_backward, written once for both devices; schemas are in ops.cpp.
#pragma once

#include "operators.h"
#include "qcfs_job.h"

namespace cos_ext {

// `t` in the memory order of `like`, which has no gaps: itself, or a copy.
inline Tensor in_order_of(const Tensor& like, const Tensor& t, uintptr_t alignment) {
  bool same = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % alignment == 0;
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == 1 || t.stride(d) == like.stride(d);
  if (same || t.numel() == 0) return t;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

// Launch is a stateless type with `static void run(const Qcfs&, const Tensor& z)`, kAlignment, the bytes that an operand's
// address must be a multiple of, `static int64_t parts(int64_t elements, int64_t bytes)`, into how many sums θ's gradient falls,
// and `static Tensor total(const Tensor&)`, their sum, in an order that the number of threads does not change.
template <class Launch>
struct QcfsOperators {
  static Tensor launch(Qcfs& job, const Tensor& z, const Tensor& theta, int64_t levels, const std::optional<Tensor>& noise,
                       const std::optional<Tensor>& grad) {
    const Tensor out = torch::stable::empty_like(z);
    const Tensor own_z = in_order_of(out, z, Launch::kAlignment);
    std::optional<Tensor> own_noise, own_grad;
    if (noise) own_noise = in_order_of(out, *noise, Launch::kAlignment);
    if (grad) own_grad = in_order_of(out, *grad, Launch::kAlignment);
    job.dtype = job_dtype(z.scalar_type());
    job.elements = z.numel();
    job.levels = levels;
    job.theta = theta.const_data_ptr();
    job.z = own_z.const_data_ptr();
    job.noise = noise ? own_noise->const_data_ptr() : nullptr;
    job.grad = grad ? own_grad->const_data_ptr() : nullptr;
    job.out = out.mutable_data_ptr();
    if (job.elements > 0) Launch::run(job, z);
    return out;
  }

  static Tensor forward(Tensor z, Tensor theta, int64_t levels, std::optional<Tensor> noise) {
    check_qcfs(z, theta, levels, kMaxLevels);
    if (noise) check_alike("noise", *noise, z);
    Qcfs job;
    return launch(job, z, theta, levels, noise, std::nullopt);
  }

  static std::tuple<Tensor, Tensor> backward(Tensor grad, Tensor z, Tensor theta, int64_t levels, std::optional<Tensor> noise) {
    check_qcfs(z, theta, levels, kMaxLevels);
    check_alike("grad", grad, z);
    if (noise) check_alike("noise", *noise, z);
    Qcfs job;
    job.count = Launch::parts(z.numel(), z.element_size());
    const Tensor parts = torch::stable::new_empty(z, {job.count}, ScalarType::Double);
    job.parts = parts.mutable_data_ptr<double>();
    const Tensor grad_z = launch(job, z, theta, levels, noise, grad);
    return {grad_z, torch::stable::to(Launch::total(parts), theta.scalar_type())};
  }
};

#define COS_EXT_REGISTER_QCFS(m, Launch)                                 \
  m.impl("qcfs", COS_EXT_BOX(&cos_ext::QcfsOperators<Launch>::forward)); \
  m.impl("qcfs_backward", COS_EXT_BOX(&cos_ext::QcfsOperators<Launch>::backward))

}  // namespace cos_ext
