// What a job says of general neurons, in the core's words, and whether that makes sense. No arithmetic, no torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/general.h"
#include "job.h"

namespace cos_ext {

template <class S>
Rule<S> rule_of(const Job& job) {
  const General& of = job.general;
  Rule<S> rule{};
  rule.s_min = static_cast<S>(of.s_min);
  rule.s_max = static_cast<S>(of.s_max);
  rule.n_min = static_cast<S>(of.n_min);
  rule.n_max = static_cast<S>(of.n_max);
  rule.upper = static_cast<S>(of.upper);
  rule.lower = static_cast<S>(of.lower);
  rule.leak = static_cast<S>(of.leak);
  rule.v_reset = static_cast<S>(job.v_reset);
  rule.ratio = static_cast<S>(of.ratio);
  rule.strict = of.strict;
  rule.hard = job.hard_reset;
  rule.gated = of.gated;
  rule.rungs = of.rungs;
  return rule;
}

inline Staircase staircase_of(const General& of) {
  if (of.rungs) return Staircase::Ladder;
  const bool few = of.s_min == 0 && of.s_max <= kFewLevels && std::isinf(of.n_min) && std::isinf(of.n_max);
  return few && !of.prediction ? Staircase::Few : Staircase::Levels;
}

// Why neurons that are simulated, or planned, for so many steps make no sense; null where they do.
inline const char* fault_of(const General& of, int64_t steps, bool emitted, bool scales) {
  constexpr double kMost = static_cast<double>(kMostLevels);
  if (!(of.s_min <= 0 && of.s_max >= 1 && of.s_min >= -kMost && of.s_max <= kMost)) {
    return "levels must be s_min <= 0 and s_max >= 1, within 2^20";
  }
  if (std::max(-of.s_min, of.s_max) * static_cast<double>(steps) > 1 << 24) return "levels times steps must be at most 2^24";
  if (!(of.n_min <= 0 && of.n_max >= 0)) return "count must allow 0";
  if (!(of.upper > 0 && of.upper <= kMost)) return "upper must be > 0 and <= 2^20";
  if (of.s_min < 0 ? !(of.lower >= 0 && of.lower <= kMost) : !(of.lower == INFINITY)) {
    return "lower must lie in 0..2^20 with negative levels, and be inf without";
  }
  if (!(of.leak > 0 && of.leak < INFINITY)) return "leak must be positive and finite";
  if (!(of.rungs >= 0 && of.rungs <= kMostRungs)) return "rungs must lie in 0..8";
  if (!(of.ratio > 0.5 && of.ratio <= 1)) return "ratio must lie in (1/2, 1]";
  if (of.silent < 0) return "silent must be >= 0";
  if (emitted && (of.rungs || scales)) return "a ladder, and scales by step, emit what they take off";
  return nullptr;
}

// What is not defined together with calibration; null where all is. `starts`: a shifted v(0), or offset spikes, are asked for.
inline const char* calibration_fault(const General& of, int64_t rho, Emission emission, bool hard, bool scales, bool starts) {
  if (starts && (!rho || emission == Emission::Block)) {
    return "v_init and offset_spikes are results of one calibration; without, and with block, there are none";
  }
  if (!rho) return nullptr;
  if (of.leak != 1 || of.rungs || of.prediction || of.silent || hard || scales) {
    return "calibration needs soft reset and levels: no leak, ladder, prediction, silent steps or scales by step";
  }
  const bool bounded = of.n_min > -INFINITY || of.n_max < INFINITY;
  if (bounded && (emission == Emission::Calibrated || emission == Emission::Block)) {
    return "calibrated emission and block need no bounds of the count";
  }
  if (emission == Emission::Calibrated && of.upper != 1) return "calibrated emission needs upper = 1";
  // At a tie one shift by θ would then move a neuron from 1 level to -1.
  if (emission == Emission::Calibrated && of.lower == 0 && !of.strict) {
    return "calibrated emission needs lower > 0 where it is not strict";
  }
  return nullptr;
}

}  // namespace cos_ext
