// What a job says of general neurons, in the core's words. No arithmetic, no torch.
#pragma once

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

}  // namespace cos_ext
