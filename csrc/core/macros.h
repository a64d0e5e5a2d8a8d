// Host and device annotations and the loop pragma of the arithmetic core. No arithmetic here.
#pragma once

#if defined(__CUDACC__)
#define COS_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// always_inline: the CPU kernels are compiled once per instruction set, and an out-of-line copy would be shared by all.
#define COS_HD inline __attribute__((always_inline))
#else
#define COS_HD inline
#endif

// Over the lanes (neurons) of a group: unrolled into registers on a GPU, vectorised on a CPU.
#if defined(__CUDA_ARCH__)
#define COS_LANES _Pragma("unroll")
#elif defined(__clang__)
#define COS_LANES _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define COS_LANES _Pragma("GCC ivdep")
#else
#define COS_LANES
#endif

// A loop of up to 16 rounds whose divisions of constants must be done by the compiler.
#if defined(__CUDACC__) || defined(__clang__)
#define COS_UNROLL_CONSTANT _Pragma("unroll")
#else
#define COS_UNROLL_CONSTANT _Pragma("GCC unroll 16")
#endif
