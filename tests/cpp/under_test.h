// The kernels that the tests call, so that one set of tests serves both back ends: a program links under_test_cpu.cpp or
// under_test_cuda.cpp. Nothing here says how they work.
#pragma once

#include "job.h"
#include "qcfs_job.h"

namespace cos_ext::test {

const char* tested();
void run_kernel(const Job& job);
void run_backward(const Job& job);
bool packed(const Job& job);  // whether memory is regular enough for the kernels' fast path
bool pools_any_window();      // else 2 x 2 alone

void run_qcfs(const Qcfs& job);
int64_t qcfs_parts(int64_t elements, int64_t bytes);

}  // namespace cos_ext::test
