"""The Triton kernel that draws from a JAX key: its numbers by Triton's interpreter, and its code for a GPU.

Run where Triton can be imported. Neither needs a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_bits_cases import EXACT, ROUNDED
from t2j_core._random import sampler
from t2j_core._random.distributions import Normal, is_of_64_bits

triton = pytest.importorskip("triton")


def test_the_kernel_draws_what_the_reference_draws():
    tests = Path(__file__).with_name("random_bits_interpreted.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout


POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.int64: "*i64",
}


@pytest.mark.parametrize("words", [2, 4])
@pytest.mark.parametrize("distribution, dtype", [*EXACT, *ROUNDED], ids=str)
def test_the_kernel_compiles_for_an_h100(monkeypatch, distribution, dtype, words):
    from t2j_core._random import philox
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns that the default is going to change
    constants = {
        "WORDS": words,
        "KIND": sampler._arguments(distribution)[0],
        "WIDE": is_of_64_bits(distribution, dtype),
        "BLOCKS": philox.BLOCKS,
    }
    types = {"out": POINTERS[dtype], "key": "*u32", "n": "i64", "position": "i32", "a": "i64", "b": "i64"}
    source = ASTSource(
        philox.draw,
        types | dict.fromkeys(constants, "constexpr"),
        constants,
        attrs={(0,): [["tt.divisibility", 16]], (2,): [["tt.divisibility", 16]]},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    ptx = compiled.asm["ptx"]
    assert ".target sm_90" in ptx
    assert len(compiled.asm["cubin"]) > 1000
    assert "st.global.v" in ptx  # each thread writes several elements at once
    if not isinstance(distribution, Normal):  # sine and cosine have a table
        assert ptx.count("ld.global") == words
    assert "lg2.approx" not in ptx  # near 1 its logarithm has the wrong sign
