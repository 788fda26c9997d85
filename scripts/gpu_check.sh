#!/usr/bin/env bash
# Build, test and measure t2j where there is an NVIDIA GPU, and perhaps no network:  scripts/gpu_check.sh [results]
#
# Needs python3 with torch and jax that both see the GPU, pytest, a C++ compiler; for some of it nvcc, ninja, Triton,
# transformers, compute-sanitizer, wrap-torch2jax. What is missing is skipped, and the results say so.
#
# Without a network put wheels of what is missing of hatchling, hatch-vcs and pybind11, and of their needs
# (setuptools-scm, vcs-versioning, trove-classifiers, pathspec, pluggy, packaging), in a folder, and name it in T2J_WHEELS.
#
# Writes into `results` (build/gpu): info.txt, tests.txt, tests.xml, gpu.json, bench.txt. Fails if a test fails.
set -euo pipefail
cd "$(dirname "$0")/.."
results=$(realpath -m "${1:-build/gpu}")
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
mkdir -p "$results"
pip=(python3 -m pip install --quiet --no-compile --target "$site")

if [ -n "${T2J_WHEELS:-}" ]; then
  "${pip[@]}" --no-index --no-deps "$T2J_WHEELS"/*.whl
else
  "${pip[@]}" "hatchling>=1.27" "hatch-vcs>=0.4" "pybind11>=2.13"
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
for package in t2j-core t2j-autodiff t2j-dist; do
  "${pip[@]}" --no-index --no-deps --no-build-isolation "./packages/$package"
done

# Two allocators share the GPU, so JAX's may not take most of it at once.
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2
nvidia-smi | tee "$results/info.txt" || true
python3 -m t2j_core | tee -a "$results/info.txt"

failed=0
python3 -m pytest -p no:cacheprovider -m gpu tests/gpu --junitxml "$results/tests.xml" 2>&1 | tee "$results/tests.txt" || failed=1
python3 benchmarks/gpu.py --output "$results/gpu.json" 2>&1 | tee "$results/bench.txt" || failed=1
exit $failed
