// Host and device annotations and loop pragmas of the arithmetic core. No arithmetic here.
#pragma once

#if defined(__CUDACC__)
#define COS_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// always_inline: the CPU kernels are compiled once per instruction set, and an out-of-line copy would be shared by all.
#define COS_HD inline __attribute__((always_inline))
#else
#define COS_HD inline
#endif

// In the CUDA kernels, which a host compiler may see too (tests/cpp/cuda_shim.h).
#if defined(__CUDACC__)
#define COS_UNROLL _Pragma("unroll")
#else
#define COS_UNROLL
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

// Over time: unrolled on a GPU so that a compile-time bucket of inputs can live in registers.
#if defined(__CUDA_ARCH__)
#define COS_TIME _Pragma("unroll")
#else
#define COS_TIME
#endif
