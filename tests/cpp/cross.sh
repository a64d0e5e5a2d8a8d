#!/usr/bin/env bash
# The core and the CPU kernels for other targets than this machine: aarch64 Linux, compiled and, where there is qemu-user, tested;
# macOS, compiled. What there is no tool for is skipped, with the reason.
#
#   tests/cpp/cross.sh PYTHON     PYTHON has torch and pybind11, for their headers; ziglang, for clang, if it is to be tried
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$1
out=build/cross
flags=(-std=c++17 -fvisibility=hidden -fno-trapping-math -fno-math-errno -ffp-contract=off -Wall -Werror)
core=(csrc/cpu/dispatch.cpp csrc/cpu/kernels_baseline.cpp csrc/cpu/kernels_avx2.cpp csrc/cpu/kernels_avx512.cpp)
mkdir -p "$out"

clang() { "$python" -m ziglang c++ "$@"; }
has_clang() { "$python" -c 'import ziglang' 2>/dev/null; }

compile() { # target sources...
  local target=$1 source
  shift
  for source in "$@"; do
    clang -target "$target" "${flags[@]}" "${headers[@]+"${headers[@]}"}" -O0 -g0 -c "$source" -o "$out/$(basename "$source").o"
  done
  echo "$target: $# files compile with clang"
}

aarch64() {
  if ! command -v aarch64-linux-gnu-g++ >/dev/null; then
    echo "aarch64-linux: not compiled with gcc: there is no aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)"
  elif ! command -v cmake >/dev/null; then
    echo "aarch64-linux: not compiled with gcc: there is no cmake"
  else
    local emulator=() run=""
    if command -v qemu-aarch64 >/dev/null; then
      emulator=("-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu") run=1
    fi
    cmake -S . -B "$out/aarch64" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
      -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ "${emulator[@]+"${emulator[@]}"}" >/dev/null
    cmake --build "$out/aarch64" --target test_core --parallel 2 >"$out/aarch64.log" || { cat "$out/aarch64.log"; return 1; }
    echo "aarch64-linux: the core's tests compile with gcc"
    if [ -n "$run" ]; then
      (cd "$out/aarch64" && ctest --output-on-failure -R core_baseline)
    else
      echo "aarch64-linux: tests not run: there is no qemu-aarch64 (Debian: qemu-user)"
    fi
  fi
}

aarch64
if ! has_clang; then
  echo "macOS, and aarch64-linux with clang: not compiled: $python has no ziglang (pip install ziglang)"
  exit 0
fi
compile aarch64-linux-gnu "${core[@]}"
compile aarch64-macos "${core[@]}"
mapfile -t headers < <("$python" - <<'PY'
import sysconfig

import pybind11
from torch.utils.cpp_extension import include_paths

for folder in (*include_paths(), pybind11.get_include(), sysconfig.get_path("include")):
    print(f"-isystem{folder}")
for name in ("TORCH", "CUDA", "CUDA_ARCHS", "CUDA_OFF"):
    print(f'-DCOS_EXT_BUILD_{name}=""')
print("-DTORCH_TARGET_VERSION=0x020b000000000000")
PY
)
compile aarch64-macos csrc/ops.cpp csrc/cpu/ops_cpu.cpp csrc/python/core_module.cpp
