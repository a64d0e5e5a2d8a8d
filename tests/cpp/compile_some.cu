// A few CUDA kernels of every family, without torch, that every architecture must compile: those in the 16-bit types, which
// old ones have least of. tests/kernels/cuda_archs.py compiles it; it never runs.
#include "cuda/units.h"

namespace cos_ext::cuda {
template __global__ void run<BFloat16, 8, 8, Mode::Fire, true>(const __grid_constant__ Task);
template __global__ void run<BFloat16, 8, 8, Mode::Held, false>(const __grid_constant__ Task);
template __global__ void run<Half, 8, 8, Mode::Reread, true, Extra::Fused>(const __grid_constant__ Task);
template __global__ void run<Half, 4, 8, Mode::Held, false, Extra::Window>(const __grid_constant__ Task);
template __global__ void run_back<BFloat16, 8, kChunk, false, ATan<float>, Extra::Plain>(const __grid_constant__ Task,
                                                                                         const __grid_constant__ ATan<float>);
template __global__ void run_general<Half, 8, Staircase::Levels, true>(const __grid_constant__ Task,
                                                                       const __grid_constant__ GeneralTask<float>);
template __global__ void quantise<BFloat16, true>(const __grid_constant__ Qcfs);
}  // namespace cos_ext::cuda
