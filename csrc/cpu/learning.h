// The gradient of integrate-and-fire neurons: what one launch has to do, and its kernel. No torch, no threads.
#pragma once

#include "../job.h"

namespace cos_ext::cpu {

// `neurons` has x, θ, v_init, the reset and the steps. x is read once where its stride of time is 0, and has one gradient then.
struct Backward {
  Job neurons;
  Surrogate surrogate = Surrogate::ATan;
  double alpha = 1;
  bool detach_reset = false;
  const void* grad = nullptr;  // of what is sent, θ s(t)
  Layout grad_layout;
  int64_t grad_time = 0;
  void* grad_x = nullptr;
  Layout grad_x_layout;
  int64_t grad_x_time = 0;
  // By neuron, in neurons.result_layout and the state type; null where not wanted.
  void* grad_theta = nullptr;
  void* grad_v_init = nullptr;
};

constexpr int64_t kBackwardBlock = 256;  // neurons whose potentials stay in L1 for tens of steps

// Neurons [begin, end), `begin` a multiple of kBackwardBlock.
using BackwardKernel = void (*)(const Backward& job, int64_t begin, int64_t end);
BackwardKernel backward();

}  // namespace cos_ext::cpu
