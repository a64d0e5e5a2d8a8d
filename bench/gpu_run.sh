#!/usr/bin/env bash
# Builds cos_ext on a machine with a GPU, tests it there and measures it: one command, under 9 minutes, no downloads.
# Is every kernel right there, and how fast is a layer and a network? The order of the phases and their time limits live
# here; what is tested, in tests/; what is measured, in gpu_layer.py and end_to_end.py.
#
#   bench/gpu_run.sh [PYTHON]                 PYTHON (python3) has a CUDA build of torch and what `prerequisites` asks
#   bench/gpu_run.sh --plan [PYTHON]          says what that would do, and in which order; needs no GPU
#   bench/gpu_run.sh --without-gpu [PYTHON]   the part that needs no GPU, with the cos_ext that PYTHON imports
#                                             (.venv/bin/python): CI runs it, so that this script cannot rot
#
# Measured, the most important first: layers beside a copy of the device; host time and launches of small layers; plain torch,
# SpikingJelly (Triton, cupy) and torch.compile; neurons and QCFS that learn, both ways; ResNet-20 end to end. Events are not:
# their kernels are for CPUs.
#
# Whatever ends a run, what it has measured until then is in bench/results/DEVICE-DATE.json, which is written after every
# case. `python bench/gpu_layer.py --draw FILE` makes a page of it.
#
# Environment: OUT, a folder for the results and logs too; COS_EXT_PEER_WHEELS and COS_EXT_COMMIT, see gpu_layer.py.
set -uo pipefail

total=510 # seconds, for all phases
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
failed=() notes=() child="" record=""
exec 3>&1 # a trap may come where the output goes into a log

mode=""
case "${1:-}" in --plan | --without-gpu) mode=$1 && shift ;; esac
if [ -n "$mode" ]; then python=${1:-$root/.venv/bin/python}; else python=${1:-python3}; fi

section() { printf '\n== %s (after %d s)\n' "$1" "$SECONDS"; }

# name seconds function question: a phase, or only its line in the plan.
phase() {
  if [ "$mode" = --plan ]; then
    printf '%4d s  %-16s %s\n' "$2" "$1" "$4"
  else
    section "$1"
    "$3" "$2"
  fi
}

# A command with a time limit, cut to what is left in all. signal=INT: a pytest, which then reports what it has.
limited() { # seconds command...
  local limit=$1 left=$((total - SECONDS))
  shift
  ((limit > left)) && limit=$left
  if ((limit < 5)); then
    echo "no time left"
    return 124
  fi
  # In the background, so that a trap need not wait for it. The workers of a pytest get no signal: it ends them itself.
  env --default-signal=INT timeout ${signal:+--foreground} -s "${signal:-TERM}" -k 15 "$limit" "$@" 3>&- &
  child=$!
  wait "$child"
}

outcome() { # name status
  if (($2 == 124 || $2 == 137)); then
    failed+=("$1: ran past its time limit")
  elif (($2 != 0)); then
    failed+=("$1: exit status $2")
  fi
}

prerequisites() { # prints what is missing; fails if it is
  local missing=0 name
  for name in timeout tar nvcc; do
    command -v "$name" >/dev/null || { echo "missing program: $name" && missing=1; }
  done
  for name in torch numpy pybind11 setuptools ninja pytest hypothesis tqdm safetensors; do
    "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$name') is None)" ||
      { echo "missing Python package: $name" && missing=1; }
  done
  command -v compute-sanitizer >/dev/null || echo "no compute-sanitizer on the PATH"
  [ -n "${COS_EXT_PEER_WHEELS:-}" ] || echo "no COS_EXT_PEER_WHEELS: SpikingJelly is measured only if installed"
  return "$missing"
}

copy_tree() { # the sources alone: no build, no environment, no hidden folder at the top
  mkdir -p "$work/tree" &&
    tar -C "$root" --exclude='./.?*' --exclude=./build --exclude=./dist --exclude='*.so' --exclude=__pycache__ -cf - . |
    tar -C "$work/tree" -xf - &&
    [ -f "$work/tree/setup.py" ] && [ -d "$work/tree/csrc" ] && [ -f "$work/tree/tests/kernels/test_gpu.py" ]
}

finish() {
  local line
  trap - EXIT TERM INT HUP
  if [ -f "$record" ]; then
    "$python" bench/gpu_layer.py --draw "$record" >"$logs/page.md"
    outcome "the page of the record" $?
    [ -z "$mode" ] && [ -n "${OUT:-}" ] && cp "$OUT"/*"${record##*/}" "$root/bench/results/"
  fi
  section "summary"
  for line in "${notes[@]+"${notes[@]}"}"; do echo "note: $line"; done
  for line in "${failed[@]+"${failed[@]}"}"; do echo "FAILED $line"; done
  [ ${#failed[@]} -eq 0 ] && echo "every phase passed"
  [ -f "$record" ] && cat "$logs/page.md"
  rm -rf "$work"
  exit $((${#failed[@]} > 0))
}

interrupted() {
  exec >&3
  [ -n "$child" ] && kill "$child" 2>/dev/null && wait "$child"
  failed+=("interrupted after $SECONDS s")
  finish
}

build() {
  # Both halves side by side: nvcc needs one core for most of the time. _core has its core beside the kernels for AVX-512,
  # which take longer than it does.
  # shellcheck disable=SC2016
  limited "$1" env FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" MAX_JOBS="$(nproc)" bash -c '
    COS_EXT_ONLY=cuda "$@" --build-temp build/cuda & cuda=$!
    COS_EXT_ONLY=cpu "$@" --build-temp build/cpu; status=$?
    wait "$cuda" && exit "$status"' _ "$python" setup.py build_ext --inplace >"$logs/build.log" 2>&1
  outcome build $?
  "$python" -c 'import cos_ext; info = cos_ext.build_info(); print(info); assert info["cuda"], info["cuda_off"]'
  outcome "cos_ext with CUDA kernels" $?
  if [ ${#failed[@]} -gt 0 ]; then
    tail -n 40 "$logs/build.log"
    notes+=("nothing else ran: there is nothing to run")
    finish
  fi
}

tests() {
  local parallel=()
  "$python" -c 'import xdist' 2>/dev/null && parallel=(-n 6)
  # Those of more than 2^31 elements one after the other: together they need more memory than there is.
  signal=INT limited "$1" env OMP_NUM_THREADS=2 "${pytest[@]}" "${parallel[@]+"${parallel[@]}"}" \
    "${gpu_tests[@]}" tests/kernels/test_operators.py tests/kernels/test_golden.py -k "not 2_31" >"$logs/tests.log" 2>&1
  outcome tests $?
  tail -n 15 "$logs/tests.log"
}

measurements() {
  local seconds=$((total - SECONDS - 100)) begin minutes # the phases after it need about that
  ((seconds > $1)) && seconds=$1
  ((seconds < 60)) && seconds=60
  begin=$((seconds > 60 ? seconds - 30 : 30)) # the last case that is begun may take half a minute
  minutes=$(printf "%d.%02d" $((begin / 60)) $((begin % 60 * 10 / 6)))
  limited "$seconds" "$python" bench/gpu_layer.py --minutes "$minutes" --json "$record" >/dev/null 2>"$logs/measure.log"
  outcome measurements $?
  tail -n 3 "$logs/measure.log"
  notes+=("wrote bench/results/${record##*/}")
}

network() {
  limited "$1" "$python" bench/end_to_end.py --device cuda --networks resnet20 --sizes 32 --timesteps 8 --rho 4 \
    --batch 256 --patience 1 --no-memory --json "${record%/*}/end-to-end-${record##*/}" >"$logs/network.log" 2>&1
  outcome "a whole network" $?
  tail -n 18 "$logs/network.log"
}

large() {
  signal=INT limited "$1" "${pytest[@]}" -rs "${gpu_tests[@]}" -k 2_31 >"$logs/tests-large.log" 2>&1
  outcome "tests of more than 2^31 elements" $?
  tail -n 8 "$logs/tests-large.log"
}

sanitizers() {
  local sanitizer tool log status
  sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
  for tool in memcheck racecheck; do
    log=$logs/$tool.log
    if [ -z "$sanitizer" ]; then
      notes+=("$tool skipped: there is no compute-sanitizer")
      continue
    fi
    # Every tensor gets an allocation of its own, so that a step beyond one is seen; torch's API probes are no errors.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited "$(($1 / 2))" "$sanitizer" --tool "$tool" --error-exitcode 9 \
      --target-processes all --report-api-errors no "${pytest[@]}" "${gpu_tests[@]}" -k compute_sanitizer >"$log" 2>&1
    status=$?
    if ((status != 0)) && grep -qi "device not supported" "$log"; then
      notes+=("$tool skipped: compute-sanitizer refuses this device ($(grep -im1 'device not supported' "$log"))")
    else
      ((status == 0)) && ! grep -q "ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards" "$log" && status=1
      outcome "$tool" "$status"
      tail -n 6 "$log"
    fi
  done
}

phases() {
  phase "build" 280 build "both halves side by side, for this device alone"
  phase "tests" 120 tests "does every kernel give the CPU's bits: forwards, gradients, QCFS, graphs, streams?"
  phase "measurements" 300 measurements "the cases below, until 100 s are left"
  phase "a network" 45 network "ResNet-20, 256 images of 32x32, T = 8: beside its convolutions, plain torch, as a graph"
  phase "large tensors" 40 large "more than 2^31 elements"
  phase "sanitizers" 130 sanitizers "compute-sanitizer's memcheck and racecheck on a few launches of every kind"
}

if [ "$mode" = --plan ]; then
  cd "$root" || exit 1
  echo "Phases and their limits; all together are cut to $total s:"
  phases
  echo
  echo "Measured by bench/gpu_layer.py, in this order:"
  "$python" bench/gpu_layer.py --plan
  exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap interrupted TERM INT HUP
# Absolute, because the directory changes below.
[ -n "${OUT:-}" ] && mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd)
logs=${OUT:-$work}
if [ -d "${COS_EXT_PEER_WHEELS:-}" ]; then
  COS_EXT_PEER_WHEELS=$(cd "$COS_EXT_PEER_WHEELS" && pwd)
  export COS_EXT_PEER_WHEELS
fi
gpu_tests=(tests/kernels/test_gpu.py tests/kernels/test_gpu_general.py tests/kernels/test_gpu_learning.py tests/kernels/test_gpu_runtime.py)
pytest=("$python" -m pytest -q -rfE -p no:cacheprovider --tb=short)

section "prerequisites"
if [ "$mode" = --without-gpu ]; then
  cd "$root" || exit 1
  prerequisites || notes+=("a run with a GPU would need more than is here")
  copy_tree
  outcome "copy of the tree" $?
  section "measurements, on the CPU, only to see that they run"
  limited 400 "$python" bench/gpu_layer.py --device cpu --quick --json "$work/result.json" >/dev/null 2>"$logs/measure.log"
  outcome measurements $?
  tail -n 3 "$logs/measure.log"
  record=$work/result.json
  section "GPU tests, collected"
  limited 400 "${pytest[@]}" "${gpu_tests[@]}" -rs >"$logs/tests.log" 2>&1
  outcome "GPU tests" $?
  tail -n 2 "$logs/tests.log"
  finish
fi

prerequisites || { echo "these are needed"; exit 2; }
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  { echo "torch sees no CUDA device"; exit 2; }
facts=$("$python" -c 'import re, torch
name, (major, minor) = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
print(re.sub("[^a-z0-9]+", "-", name.lower()).strip("-"), f"{major}.{minor}")')
read -r slug arch <<<"$facts"
echo "$slug, compute capability $arch"
export COS_EXT_COMMIT=${COS_EXT_COMMIT:-$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)}
copy_tree || { echo "the tree could not be copied"; exit 2; }
mkdir -p "$root/bench/results"
record=${OUT:-$root/bench/results}/$slug-$(date -u +%F).json
cd "$work/tree" || exit 2
export PYTHONPATH="$work/tree${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
phases
finish
