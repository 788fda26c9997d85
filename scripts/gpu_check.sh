#!/usr/bin/env bash
# Build, test and measure t2j on a machine with an NVIDIA GPU, with or without a network: scripts/gpu_check.sh [results]
#
# Needs python3 with torch and jax that both see the GPU, pytest and a C++ compiler. Some parts need nvcc, ninja,
# Triton, transformers, compute-sanitizer or wrap-torch2jax. A part whose tools are missing is skipped, and the results say so.
#
# Without a network, put wheels into a folder and name it in T2J_WHEELS: of hatchling, hatch-vcs, pybind11 and their
# dependencies (setuptools-scm, vcs-versioning, trove-classifiers, pathspec, pluggy, packaging), as far as they are
# missing, and of expecttest for the operator database.
#
# Every part has a time limit, and all end within T2J_GPU_SECONDS (400). A part that fails does not stop the others.
# Writes into `results` (build/gpu): parts.json (exit code and time of each part), first_contact.jsonl (one line per
# question, the riskiest first; see scripts/first_contact), tests.jsonl (one line per test), opdb.json (the operator
# database), gpu.json (the benchmarks) and log.txt (the output of the parts). Fails if a part fails.
#
# T2J_GPU_PARTS="install tests" runs only these parts of: install first info tests graphs values kernels sanitizer
# opdb bench.
# Without "install", T2J_GPU_SITE names the folder of an earlier installation. PYTEST_ADDOPTS="-k attention" chooses tests,
# T2J_FIRST_SECONDS (110) and T2J_OPDB_SECONDS (110) limit the questions and the operator database. T2J_GPU_FIRST,
# T2J_GPU_OPDB and T2J_GPU_BENCH are options for these two and the benchmarks.
#
# T2J_GPU_FIRST="--device cpu" T2J_GPU_MARK="not gpu" T2J_BENCH_DEVICE=cpu T2J_GPU_BENCH=--quick
# T2J_GPU_OPDB="--device cpu --jobs 2" tries the script without a GPU; tests/process/test_gpu_check.py tries two parts.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
results=$(realpath -m "${1:-build/gpu}")
work=$(mktemp -d)
site=$(realpath -m "${T2J_GPU_SITE:-$work/site}")
parts=${T2J_GPU_PARTS:-install first info tests graphs values kernels sanitizer opdb bench}
trap 'rm -rf "$work"' EXIT
mkdir -p "$results"
rm -f "$results"/{parts.jsonl,first_contact.jsonl,tests.jsonl,log.txt}
end=$((SECONDS + ${T2J_GPU_SECONDS:-400}))

# part NAME SECONDS COMMAND...: runs the command for at most that long, and records the outcome. 124: out of time.
part() {
  local name=$1 most=$2 start=$SECONDS code=0
  shift 2
  [[ " $parts " == *" $name "* ]] || return 0
  most=$((end - SECONDS < most ? end - SECONDS : most))
  if [ "$most" -le 0 ]; then
    code=124
  else
    timeout --kill-after=10 "$most" "$@" >"$work/$name.txt" 2>&1 || code=$?
  fi
  printf '{"part": "%s", "exit": %d, "seconds": %d}\n' "$name" "$code" $((SECONDS - start)) >>"$results/parts.jsonl"
  printf '== %s: exit %d after %d s\n' "$name" "$code" $((SECONDS - start)) | tee -a "$work/$name.txt"
  cat "$work/$name.txt" >>"$results/log.txt"
  tail -n "${lines:-15}" "$work/$name.txt"
  return "$code"
}

install() (
  set -e
  pip=(python3 -m pip install --quiet --upgrade --no-compile --no-cache-dir --disable-pip-version-check --target "$site")
  if [ -n "${T2J_WHEELS:-}" ]; then
    "${pip[@]}" --no-index --no-deps "$T2J_WHEELS"/*.whl
  else
    "${pip[@]}" "hatchling>=1.27" "hatch-vcs>=0.4" "pybind11>=2.13"
  fi
  rm -rf "$site"/t2j_*  # an earlier installation, perhaps of a different version
  for package in t2j-core t2j-autodiff t2j-dist; do
    "${pip[@]}" --no-index --no-deps --no-build-isolation "./packages/$package"
  done
)
info() {
  nvidia-smi
  python3 -m t2j_core
}
tests() { # exit code 5: no test has this mark
  python3 -m pytest -p no:cacheprovider -o faulthandler_timeout=60 -m "${T2J_GPU_MARK:-gpu}" "$@" || [ $? = 5 ]
}
values() { # many tests that measure no times and share nothing
  if python3 -c 'import xdist'; then tests -n "${T2J_GPU_WORKERS:-4}" "$@"; else tests "$@"; fi
}
export -f install info tests values
export site PYTHONUNBUFFERED=1 PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
# Two allocators share the GPU, so JAX must not reserve most of it at start.
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2 T2J_ALL=1 T2J_TEST_LOG="$results/tests.jsonl"

failed=0
part install 120 bash -c install || exit
most=${T2J_FIRST_SECONDS:-110} # it then ends its processes
first=(python3 scripts/first_contact --seconds "$most" --output "$results/first_contact.jsonl")
# shellcheck disable=SC2086  # options
lines=60 part first $((most + 20)) "${first[@]}" ${T2J_GPU_FIRST:-} || failed=1
lines=60 part info 40 bash -c info || failed=1

# Tests measure no times, so they run at the same time; the benchmarks run alone.
jobs=()
part tests 140 bash -c 'tests tests/gpu/test_calls.py tests/gpu/test_gpu.py tests/gpu/test_memory.py' & jobs+=($!)
part graphs 140 bash -c 'tests tests/gpu/test_command_buffers.py' & jobs+=($!) # a failed capture may harm other tests
part values 160 bash -c 'values tests/gpu/test_values.py' & jobs+=($!)
part kernels 140 bash -c 'tests tests/gpu/test_kernels.py' & jobs+=($!)
part sanitizer 140 bash -c 'tests tests/gpu/test_sanitizer.py' & jobs+=($!)
most=${T2J_OPDB_SECONDS:-110} left=$((end - SECONDS - 15)) # it writes its results at the end
opdb=(python3 tests/contract/opdb.py --device cuda --jobs 10 --patience 40 --seconds $((left < most ? left : most)))
# shellcheck disable=SC2086  # options
lines=30 part opdb $((most + 15)) "${opdb[@]}" --output "$results/opdb.json" ${T2J_GPU_OPDB:-} & jobs+=($!)
for job in "${jobs[@]}"; do wait "$job" || failed=1; done

export T2J_BENCH_SECONDS=$((end - SECONDS - 40))
lines=200 part bench 200 python3 benchmarks/gpu.py --output "$results/gpu.json" ${T2J_GPU_BENCH:-} || failed=1
python3 -c 'import json, sys; print(json.dumps([json.loads(line) for line in sys.stdin], indent=1))' \
  <"$results/parts.jsonl" >"$results/parts.json" && rm "$results/parts.jsonl"
exit $failed
