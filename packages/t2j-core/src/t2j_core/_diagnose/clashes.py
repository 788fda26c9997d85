"""Whether the GPU libraries of the installed PyTorch and JAX fit together, judged by their versions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions

import torch

Versions = Mapping[str, str | None]
Needs = Mapping[str, Sequence[str]]

_OF_JAX = re.compile(r"jax-(cuda|rocm)(\d+)-(?:plugin|pjrt)")
_OF_GPUS = re.compile(r"nvidia-|cuda-|jax-(cuda|rocm)\d")


def installed() -> tuple[dict[str, str | None], dict[str, list[str]]]:
    """The versions of both frameworks and of wheels with GPU libraries, and what those wheels and torch require."""
    versions: dict[str, str | None] = {
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda,
        "rocm of torch": torch.version.hip,
    }
    needs: dict[str, list[str]] = {}
    for wheel in distributions():
        name = _canonical(wheel.metadata["Name"] or "")
        if name == "jaxlib" or _OF_GPUS.match(name):
            versions.setdefault(name, wheel.version)
        if name == "torch" or _OF_GPUS.match(name):
            needs.setdefault(name, list(wheel.requires or ()))
    return versions, needs


def clashes(versions: Versions, needs: Needs | None = None) -> list[str]:
    """What does not fit together, with what to do about it; empty if everything fits.

    Args:
      versions: by name: `torch`, `cuda of torch`, `rocm of torch`, `jaxlib`, and wheels such as `jax-cuda12-plugin`
        and `nvidia-cudnn-cu12`. What is missing or None is not installed.
      needs: the requirements of wheels, as in their metadata.

    >>> clashes({"torch": "2.13.0", "cuda of torch": "13.0", "jaxlib": "0.10.2", "jax-cuda13-plugin": "0.10.2"})
    []
    """
    return [*_between_frameworks(versions), *_within_jax(versions), *_unmet(versions, needs or {})]


def _between_frameworks(versions: Versions) -> Iterator[str]:
    of_torch = {kind: _numbers(versions.get(f"{kind} of torch") or "")[:1] for kind in ("cuda", "rocm")}
    of_torch = {kind: major for kind, major in of_torch.items() if major}
    of_jax = dict(_plugins(versions).values())
    for kind, major in of_jax.items():
        if not of_torch:
            yield (
                f"JAX has {_LABEL[kind]} {major}, but torch {versions.get('torch')} runs on the CPU only: calls on "
                f"arrays of a GPU fail. Install torch for {_LABEL[kind]} {major}, or set JAX_PLATFORMS=cpu."
            )
        elif kind not in of_torch:
            yield f"JAX is for {_LABEL[kind]}, torch for another kind of GPU. Install both for one kind."
        elif of_torch[kind] != (major,):
            yield (
                f"torch is built for {_LABEL[kind]} {of_torch[kind][0]}, JAX for {_LABEL[kind]} {major}: in one "
                f"process, one may load the libraries of the other. Install both for {_LABEL[kind]} {major}."
            )
    if of_torch and not of_jax:
        ((kind, (major,)),) = of_torch.items()
        yield (
            f"torch has {_LABEL[kind]} {major}, but JAX has no plugin for it: arrays and calls stay on the CPU. "
            f"Install JAX for {_LABEL[kind]}{f': `jax[cuda{major}]`' if kind == 'cuda' else ''}."
        )


_LABEL = {"cuda": "CUDA", "rocm": "ROCm"}


def _within_jax(versions: Versions) -> Iterator[str]:
    plugins = _plugins(versions)
    if len(set(plugins.values())) > 1:
        yield f"JAX has plugins for several kinds of GPU: {', '.join(sorted(plugins))}. Uninstall all but one kind."
    jaxlib = versions.get("jaxlib") or ""
    for name in sorted(plugins):
        found = versions[name] or ""
        if jaxlib and _numbers(found) != _numbers(jaxlib):
            yield f"{name} {found} is not for jaxlib {jaxlib}, so JAX does not use it. Install {name}=={jaxlib}."


def _plugins(versions: Versions) -> dict[str, tuple[str, int]]:
    """JAX's plugins, with the kind and major version of the GPU library that each is for."""
    matches = {name: _OF_JAX.fullmatch(name) for name, version in versions.items() if version}
    # `rocm60` is ROCm 6.0, `cuda12` is CUDA 12
    return {name: (m[1], int(m[2][:1] if m[1] == "rocm" else m[2])) for name, m in matches.items() if m}


def _unmet(versions: Versions, needs: Needs) -> Iterator[str]:
    """Wheels of NVIDIA that are too old, or of another major version, for a wheel that is built against them."""
    for owner in sorted(needs):
        for requirement in needs[owner]:
            match = re.match(r"([\w.-]+)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)", requirement)
            name, wanted = (_canonical(match[1]), match[2].strip()) if match else ("", "")
            found = versions.get(name)
            if name.startswith("nvidia-") and found and not _fits(found, wanted):
                yield f"{owner} needs {name} {wanted}, but {found} is installed. Install one that fits both frameworks."


def _fits(found: str, wanted: str) -> bool:
    """Whether a version meets a requirement. For `==` any newer one does, within the same major version."""
    have = _numbers(found)
    for operator, text in re.findall(r"(==|~=|>=|<=|!=|<|>)\s*([\w.*+!-]+)", wanted):
        want = _numbers(text)
        size = max(len(have), len(want))
        a, b = (numbers + (0,) * (size - len(numbers)) for numbers in (have, want))
        too_old = a < b if operator in ("==", "~=", ">=") else operator == ">" and a <= b
        too_new = a > b if operator == "<=" else operator == "<" and a >= b
        if too_old or too_new or (operator in ("==", "~=") and a[0] != b[0]):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version: `2.13.0+cu130` is (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
