// The C++ tests, run plain and under sanitizers: calls them all and reports. CMake makes two programs of them, one for the CPU
// kernels of the chosen instruction set, one for the bodies of the CUDA kernels on the host (under_test.h).
#include <cstdio>
#include <cstdlib>

#include "tests.h"
#include "under_test.h"

int main(int argc, char** argv) {
  using namespace cos_ext::test;
  if (argc != 2) {
    std::printf("usage: %s cos_reference_public.npz\n", argv[0]);
    return EXIT_FAILURE;
  }
  std::printf("%s\n", tested());
  golden_vectors(argv[1]);
  half_conversions();
  exact_offset_spikes();
  floors_without_division();
  general_neurons();
  kernels();
  spike_convolutions();
  gradients();
  activations();
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
