// The kernels against golden vectors: spikes that the authors' script recorded in tests/golden/*.npz. Reads them, too.
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "job.h"
#include "tests.h"
#include "under_test.h"

namespace cos_ext::test {
namespace {

// The arrays of an uncompressed .npz (numpy.savez), by name, as their bytes; the shape is not needed.
std::map<std::string, std::vector<char>> read_npz(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto number = [&](size_t at, int bytes) {
    uint64_t value = 0;
    std::memcpy(&value, all.data() + at, bytes);
    return value;
  };
  std::map<std::string, std::vector<char>> arrays;
  for (size_t at = 0; at + 30 < all.size() && number(at, 4) == 0x04034b50;) {
    const size_t name = number(at + 26, 2), npy = at + 30 + name + number(at + 28, 2);
    const size_t data = npy + 10 + number(npy + 8, 2);
    const std::string header = all.substr(npy + 10, data - npy - 10);
    size_t elements = 1, digit = header.find('(');
    while (header[digit] != ')') {
      digit = header.find_first_of("0123456789)", digit);
      if (header[digit] != ')') elements *= std::stoul(header.substr(digit), nullptr);
      digit = header.find_first_of(",)", digit);
    }
    const size_t bytes = elements * (header.find("<f8") != std::string::npos ? 8 : 4);
    arrays[all.substr(at + 30, name - 4)].assign(all.begin() + data, all.begin() + data + bytes);
    at = data + bytes;
  }
  return arrays;
}

}  // namespace

// The authors' spikes, EQUAL but where T > rho and a neuron fired at each of the first rho steps with r >= θ (test_golden.py).
void golden_vectors(const char* path) {
  auto arrays = read_npz(path);
  int cases = 0, spikes = 0;
  for (; arrays.count("meta" + std::to_string(cases)); ++cases) {
    const std::string number = std::to_string(cases);
    const double* meta = reinterpret_cast<const double*>(arrays["meta" + number].data());
    const int64_t steps = static_cast<int64_t>(meta[0]), rho = static_cast<int64_t>(meta[1]);
    const float theta = static_cast<float>(meta[2]);
    const auto floats = [&](const std::string& name) {
      const std::vector<char>& bytes = arrays[name];
      std::vector<float> values(bytes.size() / sizeof(float));
      std::memcpy(values.data(), bytes.data(), bytes.size());
      return values;
    };
    const std::vector<float> x = floats("x" + number), y = floats("y" + number);
    std::vector<float> out(x.size());
    Job job;
    job.neurons = static_cast<int64_t>(x.size()) / steps;
    job.steps = steps;
    job.rho = rho;
    job.iterations = 1;
    job.x = x.data();
    job.spikes = out.data();
    job.x_time = job.spikes_time = job.neurons;
    job.x_layout = job.spikes_layout = make_layout({job.neurons}, {1}, {0});
    job.theta.value = theta;
    run_kernel(job);
    for (int64_t n = 0; n < job.neurons; ++n) {
      float v = theta / 2;
      int64_t count = 0;
      for (int64_t t = 0; t < rho; ++t) {
        v += x[t * job.neurons + n];
        const bool fired = v >= theta;
        v = fired ? v - theta : v;
        count += fired;
      }
      if (steps > rho && count == rho && v >= theta) continue;
      for (int64_t t = 0; t < steps; ++t) {
        const int64_t at = t * job.neurons + n;
        check((out[at] > 0) == (y[at] > 0) && (out[at] == 0 || out[at] == theta), "golden spike", cases, at);
        spikes += out[at] > 0;
      }
    }
  }
  check(cases == 6 && spikes > 100, "golden cases were read", cases, spikes);
}

}  // namespace cos_ext::test
