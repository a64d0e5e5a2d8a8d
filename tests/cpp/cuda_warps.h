// Warps on the host: the lanes of a CUDA kernel really exchange values and really part. cuda_shim.h launches them.
//
// A lane that meets others of its warp (__activemask, a shuffle) waits on a stack of its own; the rest costs no switch. Which
// lanes __activemask sees together is nobody's promise: in seven warps of eight every lane is alone, which costs nothing, and
// in the eighth they part at random. A shuffle whose mask names a lane that never comes is an error. The kernels share no memory
// and have no __syncthreads, so neither is here. One lane runs at a time: races are not seen, and atomics are plain. No tests
// here.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

struct ShimIndex {
  unsigned x = 0;
};
inline thread_local ShimIndex threadIdx, blockIdx;

class ShimWarp {
 public:
  static constexpr unsigned kLanes = 32;

  static ShimWarp& current() {
    static thread_local ShimWarp warp;
    return warp;
  }
  // body() in every lane, of which the first is thread `first` of the block.
  void run(unsigned first, const std::function<void()>& body) {
    first_ = first;
    body_ = &body;
    begun_ = 0;
    alone_ = random_() % 8 != 0;
    for (Lane& lane : lanes_) lane = {};
    do {
      while (begun_ < kLanes) resume(idle());
    } while (release());
  }
  // The lanes that are at `place` together. A loop's rounds are places of their own.
  unsigned active(const void* place) {
    if (alone_) return 1u << lane_;
    ++lanes_[lane_].asked;
    wait(place, 0);
    return lanes_[lane_].mask;
  }
  // Brings a value, waits for the lanes of the mask, and returns what `source` brought.
  uint64_t exchange(unsigned mask, uint64_t value, unsigned source) {
    if (!(mask >> lane_ & mask >> source & 1)) fault_ = "a shuffle with a lane outside of its mask";
    lanes_[lane_].value = value;
    wait(nullptr, mask);
    return lanes_[source].given;
  }

 private:
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    unsigned lane = 0;
    bool busy = false;
  };
  struct Lane {
    Fiber* waits = nullptr;  // at a place of __activemask, or without one in a shuffle
    const void* place = nullptr;
    unsigned mask = 0, asked = 0;
    uint64_t value = 0, given = 0;
  };

  Fiber& idle() {
    for (const auto& fiber : fibers_) {
      if (!fiber->busy) return *fiber;
    }
    constexpr size_t bytes = size_t{1} << 17;
    Fiber& fiber = *fibers_.emplace_back(std::make_unique<Fiber>());
    fiber.stack.reset(new char[bytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = bytes;
    makecontext(&fiber.context, [] { current().work(); }, 0);
    return fiber;
  }
  void take(unsigned lane) {
    lane_ = fiber_->lane = lane;
    threadIdx.x = first_ + lane;
  }
  void resume(Fiber& fiber) {
    fiber_ = &fiber;
    fiber.busy = true;
    take(fiber.lane);
    swapcontext(&scheduler_, &fiber.context);
    if (fault_) give_up(std::exchange(fault_, nullptr));
  }
  void give_up(const char* what) {
    fibers_.clear();  // with the lanes that wait
    throw std::runtime_error(what);
  }
  // All of a fiber: lane after lane, until one has to wait.
  void work() {
    for (;; swapcontext(&fiber_->context, &scheduler_)) {
      for (; begun_ < kLanes; (*body_)()) take(begun_++);
      fiber_->busy = false;
    }
  }
  void wait(const void* place, unsigned mask) {
    lanes_[lane_].waits = fiber_;
    lanes_[lane_].place = place;
    lanes_[lane_].mask = mask;
    swapcontext(&fiber_->context, &scheduler_);
  }

  // Lets lanes that have met go on; false where all are done.
  bool release() {
    bool waiting = false;
    unsigned going = 0, turn = static_cast<unsigned>(random_());
    for (unsigned i = 0; i < kLanes && !going; ++i) {
      const Lane& one = lanes_[(i + turn) % kLanes];
      if (!one.waits) continue;
      waiting = true;
      const unsigned there = alike(one);
      if (one.place) going = random_() % 16 ? there : there & (static_cast<unsigned>(random_()) | 1u << (i + turn) % kLanes);
      if (!one.place && there == one.mask) going = there;  // all have come
    }
    if (waiting && !going) give_up("a shuffle's mask names a lane that never comes");
    for (unsigned i = 0; i < kLanes; ++i) {
      if (going >> i & 1 && lanes_[i].place) lanes_[i].mask = going;
      if (going >> i & 1) lanes_[i].given = lanes_[i].value;
    }
    for (unsigned i = 0; i < kLanes; ++i) {
      if (going >> i & 1) resume(*std::exchange(lanes_[i].waits, nullptr));
    }
    return waiting;
  }
  // The lanes that wait for the same.
  unsigned alike(const Lane& one) const {
    unsigned found = 0;
    for (unsigned i = 0; i < kLanes; ++i) {
      const Lane& lane = lanes_[i];
      const bool same = one.place ? lane.asked == one.asked : lane.mask == one.mask;
      found |= unsigned{lane.waits && lane.place == one.place && same} << i;
    }
    return found;
  }

  const std::function<void()>* body_ = nullptr;
  unsigned first_ = 0, begun_ = 0, lane_ = 0;
  bool alone_ = false;
  Fiber* fiber_ = nullptr;
  Lane lanes_[kLanes];
  const char* fault_ = nullptr;
  ucontext_t scheduler_ = {};
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::mt19937 random_;
};

__attribute__((noinline)) inline unsigned __activemask() { return ShimWarp::current().active(__builtin_return_address(0)); }
inline int64_t __shfl_xor_sync(unsigned mask, int64_t value, int other) {
  const unsigned source = threadIdx.x % ShimWarp::kLanes ^ static_cast<unsigned>(other);
  return static_cast<int64_t>(ShimWarp::current().exchange(mask, static_cast<uint64_t>(value), source));
}
inline void atomicAdd(unsigned long long* to, unsigned long long value) { *to += value; }
