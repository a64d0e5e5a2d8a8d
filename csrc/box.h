// An operator as torch calls it, whose failures say why: what COS_EXT_BOX makes of a function. No operators here.
//
// Of a call that fails (no memory, most of all) the stable ABI tells only that it failed. torch 2.13 and later keep the message
// and hand it out; before, torch prints it.
#pragma once

#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>

// Null where torch is older than 2.13.
extern "C" __attribute__((weak, visibility("default"))) const char* torch_exception_get_what_without_backtrace();

namespace cos_ext {

// Whether a call of torch failed; torch/headeronly/util/shim_utils.h words it so.
inline bool of_torch(const std::string& what) { return what.find(" API call failed at ") != std::string::npos; }

inline std::string explained(const std::string& what) {
  if (torch_exception_get_what_without_backtrace) return torch_exception_get_what_without_backtrace();
  return "a call of torch failed; torch older than 2.13 does not say why here, but has printed it: " + what;
}

template <void (*Boxed)(StableIValue*, uint64_t, uint64_t)>
void explaining(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  try {
    Boxed(stack, inputs, outputs);
  } catch (const std::runtime_error& error) {
    if (!of_torch(error.what())) throw;
    throw std::runtime_error(explained(error.what()));
  }
}

}  // namespace cos_ext

#define COS_EXT_BOX(function) (&cos_ext::explaining<&TORCH_BOX(function)>)
