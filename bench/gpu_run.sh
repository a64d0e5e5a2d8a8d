#!/usr/bin/env bash
# Builds cos_ext on a machine with a GPU, tests it there and measures it: one command, under 9 minutes, no downloads.
# How does one layer do on a GPU, and is it right there? The order of these steps and their time limits live here; what
# is tested, in tests/; what is measured, in gpu_layer.py and _gpu_layer/.
#
#   bench/gpu_run.sh [PYTHON]                 PYTHON (python3) has a CUDA build of torch and what `prerequisites` asks
#   bench/gpu_run.sh --without-gpu [PYTHON]   the part that needs no GPU, with the cos_ext that PYTHON imports
#                                             (.venv/bin/python): CI runs it, so that this script cannot rot
#
# Environment: OUT, a folder for the results and logs too; COS_EXT_PEER_WHEELS and COS_EXT_COMMIT, see gpu_layer.py.
set -uo pipefail

total=510 # seconds, for all phases
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=() notes=()
# Absolute, because the directory changes below.
[ -n "${OUT:-}" ] && mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd)
if [ -d "${COS_EXT_PEER_WHEELS:-}" ]; then
  COS_EXT_PEER_WHEELS=$(cd "$COS_EXT_PEER_WHEELS" && pwd)
  export COS_EXT_PEER_WHEELS
fi

# A command with a time limit, cut to what is left in all. SIGTERM first: gpu_layer.py then reports what it has.
limited() { # seconds command...
  local limit=$1 left=$((total - SECONDS))
  shift
  ((limit > left)) && limit=$left
  if ((limit < 5)); then
    echo "no time left"
    return 124
  fi
  timeout -k 15 "$limit" "$@"
}

section() { printf '\n== %s (after %d s)\n' "$1" "$SECONDS"; }

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
  [ -n "${OUT:-}" ] && cp "$work"/*.log "$OUT/"
  section "summary"
  for line in "${notes[@]+"${notes[@]}"}"; do echo "note: $line"; done
  for line in "${failed[@]+"${failed[@]}"}"; do echo "FAILED $line"; done
  [ ${#failed[@]} -eq 0 ] && echo "every phase passed"
  [ -f "$work/table.log" ] && cat "$work/table.log"
  exit $((${#failed[@]} > 0))
}

if [ "${1:-}" = --without-gpu ]; then
  python=${2:-$root/.venv/bin/python}
  cd "$root" || exit 1
  section "prerequisites of a run with a GPU"
  prerequisites || notes+=("a run with a GPU would need more than is here")
  copy_tree
  outcome "copy of the tree" $?
  section "measurements, on the CPU, only to see that they run"
  limited 180 "$python" bench/gpu_layer.py --device cpu --quick --json "$work/result.json" >"$work/measure.log" 2>&1
  outcome "measurements" $?
  tail -n 25 "$work/measure.log"
  "$python" -c 'import json, sys; assert json.load(open(sys.argv[1]))["rows"]' "$work/result.json"
  outcome "the results as JSON" $?
  section "GPU tests, collected"
  limited 60 "$python" -m pytest tests/kernels/test_gpu.py tests/kernels/test_gpu_runtime.py -q -rs -p no:cacheprovider >"$work/tests.log" 2>&1
  outcome "GPU tests" $?
  tail -n 2 "$work/tests.log"
  finish
fi

python=${1:-python3}
section "prerequisites"
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
cd "$work/tree" || exit 2
export PYTHONPATH="$work/tree${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

section "build"
limited 180 env FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" MAX_JOBS="$(nproc)" \
  "$python" setup.py build_ext --inplace >"$work/build.log" 2>&1
outcome build $?
"$python" -c 'import cos_ext; info = cos_ext.build_info(); print(info); assert info["cuda"], info["cuda_off"]'
outcome "cos_ext with CUDA kernels" $?
if [ ${#failed[@]} -gt 0 ]; then
  tail -n 40 "$work/build.log"
  notes+=("nothing else ran: there is nothing to run")
  finish
fi

section "tests"
parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n 6)
pytest=("$python" -m pytest -q -rfE -p no:cacheprovider --tb=short)
# Those of more than 2^31 elements one after the other: together they need more memory than there is.
limited 110 env OMP_NUM_THREADS=2 "${pytest[@]}" "${parallel[@]+"${parallel[@]}"}" \
  tests/kernels/test_gpu.py tests/kernels/test_gpu_runtime.py tests/kernels/test_operators.py \
  tests/kernels/test_golden.py -k "not 2_31" >"$work/tests.log" 2>&1
outcome tests $?
tail -n 15 "$work/tests.log"
limited 40 "${pytest[@]}" -rs tests/kernels/test_gpu_runtime.py -k 2_31 >"$work/tests-large.log" 2>&1
outcome "tests of more than 2^31 elements" $?
tail -n 8 "$work/tests-large.log"

sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
for tool in memcheck racecheck; do
  section "compute-sanitizer, $tool"
  log=$work/$tool.log
  if [ -z "$sanitizer" ]; then
    notes+=("$tool skipped: there is no compute-sanitizer")
    continue
  fi
  # Every tensor gets an allocation of its own, so that a step beyond one is seen; torch's API probes are no errors.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited 60 "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all \
    --report-api-errors no "${pytest[@]}" tests/kernels/test_gpu_runtime.py -k compute_sanitizer >"$log" 2>&1
  status=$?
  if ((status != 0)) && grep -qi "device not supported" "$log"; then
    notes+=("$tool skipped: compute-sanitizer refuses this device ($(grep -im1 'device not supported' "$log"))")
  else
    ((status == 0)) && ! grep -q "ERROR SUMMARY: 0 errors\|RACECHECK SUMMARY: 0 hazards" "$log" && status=1
    outcome "$tool" "$status"
    tail -n 6 "$log"
  fi
done

section "measurements"
seconds=$((total - SECONDS - 10))
((seconds > 330)) && seconds=330
begin=$((seconds > 60 ? seconds - 30 : 30)) # the last case that is begun may take half a minute
minutes=$(printf "%d.%02d" $((begin / 60)) $((begin % 60 * 10 / 6)))
limited "$seconds" "$python" bench/gpu_layer.py --minutes "$minutes" \
  --json "$work/result.json" >"$work/table.log" 2>"$work/measure.log"
outcome measurements $?
tail -n 3 "$work/measure.log"
if [ -f "$work/result.json" ]; then
  file=$slug-$(date -u +%F).json
  mkdir -p "$root/bench/results" && cp "$work/result.json" "$root/bench/results/$file" &&
    notes+=("wrote bench/results/$file")
  [ -n "${OUT:-}" ] && cp "$work/result.json" "$OUT/$file"
fi
finish
