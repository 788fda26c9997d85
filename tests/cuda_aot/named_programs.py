"""Programs of a named function, for `test_serialised_programs.py`, which also runs this file in other processes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import torch
from h100 import aval, program
from t2j_autodiff import torch2jax

ARGUMENTS = aval(128, 128), aval(128, 128)


def layer(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ w)


def named() -> Callable[..., Any]:
    return torch2jax(layer, name="cuda_aot.layer")


def programs() -> Iterator[tuple[str, Callable[..., Any]]]:
    f = named()
    two = lambda x, w: f(f(x, w), w)
    yield "forward", two
    yield "gradient", jax.value_and_grad(lambda x, w: (two(x, w) ** 2).sum(), 1)


def digests() -> dict[str, str]:
    found = {}
    for name, function in programs():
        lowered = jax.jit(function).lower(*ARGUMENTS)
        for kind, text in (("lowered", lowered.as_text()), ("compiled", lowered.compile().as_text())):
            found[f"{name}, {kind}"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def export(path: Path) -> None:
    checks = [jax.export.DisabledSafetyCheck.custom_call("t2j_torch_call")]
    exported = jax.export.export(jax.jit(named()), platforms=["cuda"], disabled_checks=checks)(*ARGUMENTS)
    path.write_bytes(exported.serialize())


def compile_exported(path: Path) -> dict[str, Any]:
    """The error where the function is missing, and how many calls the program has once it is there."""
    call = jax.export.deserialize(path.read_bytes()).call
    error = ""
    try:
        program(call, *ARGUMENTS)
    except jax.errors.JaxRuntimeError as raised:
        error = str(raised)
    function = named()
    calls = len(program(lambda *xs: call(*xs), *ARGUMENTS).calls)
    del function
    return {"error": error, "calls": calls}


if __name__ == "__main__":
    print(json.dumps(compile_exported(Path(sys.argv[1])) if sys.argv[1:] else digests()))
