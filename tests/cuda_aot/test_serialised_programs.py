"""Programs for a GPU in other processes: their texts, of which JAX's cache of compiled programs makes its keys; and
exported ones. XLA needs a GPU to load an executable: `packages/t2j-core/tests/test_export.py` does so on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import named_programs
import pytest
import torch
from h100 import aval, compiled
from jax.experimental import serialize_executable
from t2j_core import torch2jax


def in_another_process(*arguments: object, seed: int = 0) -> dict[str, object]:
    command = [sys.executable, named_programs.__file__, *map(str, arguments)]
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, object]:
    return in_another_process(seed=1)


def test_programs_have_the_same_text_in_every_process(elsewhere):
    assert set(elsewhere) == {f"{name}, {kind}" for name in ("forward", "gradient") for kind in ("lowered", "compiled")}
    assert in_another_process(seed=2) == elsewhere


def test_programs_of_named_functions_do_not_depend_on_other_functions(elsewhere):
    for _ in range(3):
        jax.eval_shape(torch2jax(torch.sin), aval(8))
    here = named_programs.digests()
    assert here["forward, lowered"] == elsewhere["forward, lowered"]
    # What is derived from a named function has a number of its own, which counts the functions of a process.
    assert here["gradient, lowered"] != elsewhere["gradient, lowered"]


def test_an_exported_program_compiles_in_another_process_once_that_has_the_function(tmp_path):
    path = tmp_path / "program"
    named_programs.export(path)
    found = in_another_process(path)
    assert found["calls"] == 1
    assert "ExportError" in found["error"]
    assert "cuda_aot.layer" in found["error"]


def test_a_serialised_executable_has_the_name_of_its_function_and_no_number():
    executable = compiled(torch2jax(torch.sin, name="cuda_aot.sin"), aval(8))
    payload, _, _ = serialize_executable.serialize(executable)
    assert b"cuda_aot.sin" in payload
    assert "id = 0 : i64" in executable.as_text()
