// What the files of the C++ tests share: the tests that test_core.cpp calls, and how they report. No test here.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

namespace cos_ext::test {

void half_conversions();
void exact_offset_spikes();
void floors_without_division();
void general_neurons();
void golden_vectors(const char* npz);
void kernels();
void spike_convolutions();
void gradients();
void activations();

inline int failures = 0;
inline void check(bool ok, const char* what, long long a = 0, long long b = 0) {
  if (!ok && ++failures <= 20) std::printf("FAILED: %s (%lld, %lld)\n", what, a, b);
}

template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// A copy on the heap, so that a step beside it is seen.
template <class E>
std::unique_ptr<E[]> exact(const std::vector<E>& from) {
  std::unique_ptr<E[]> made(new E[from.size()]);
  std::copy(from.begin(), from.end(), made.get());
  return made;
}

}  // namespace cos_ext::test
