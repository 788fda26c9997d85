"""The rise of memory during calls, in MB, as JSON: `python _peak_memory.py call|step CONTESTANT SIZE`.

bench_startup.py runs this in a new process. Linux only: other systems cannot reset the peak before the calls.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from _harness import Call, libc

# The harness comes first because it pins the threads before torch loads.
# isort: split
import _contestants as ways
import jax
import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(field: str) -> float:
    """`VmRSS`, the current memory, or `VmHWM`, its peak."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1e3


def adder(contestant: str, size: int) -> Call:
    """A jitted `a + b`."""
    a, b = ways.normal(size, size)
    if contestant == ways.TORCH:
        ta, tb = map(ways.from_dlpack, (a, b))
        return lambda: ta + tb
    fns = {
        "t2j": lambda: ways.t2j(torch.add),
        "t2j copy": lambda: ways.t2j(torch.add, outputs="copy"),
        ways.PEER: lambda: ways.peer(torch.add, a, b),
        ways.TVM: lambda: ways.tvm_ffi(torch.add),
        "buffer_callback": lambda: ways.buffer_callback(torch.add),
        "pure_callback": lambda: ways.pure_callback(torch.add),
        ways.JNP: lambda: jax.numpy.add,
    }
    return ways.jitted(fns[contestant](), a, b)


def step(contestant: str, size: int) -> Call:
    """A jitted `value_and_grad` of a multilayer perceptron."""
    import _models as models

    loss, params = models.loss_of(models.mlp(1024, 8))
    x = torch.randn(size, 1024)
    if contestant == ways.TORCH:
        return models.native_step(loss, params, x)
    if contestant == ways.JNP:
        fn = models.mlp_in_jnp
    elif contestant == ways.PEER:
        fn = ways.peer(loss, params, x)
    else:
        residuals = contestant.removeprefix("t2j").strip() or "auto"
        fn = ways.t2j_autodiff(loss, residuals=residuals)
    return ways.jitted(jax.value_and_grad(fn), *models.in_jax((params, x)))


def main(task: str, contestant: str, size: int) -> None:
    """Record memory once everything is allocated and compiled, then the peak of three calls. Results are dropped."""
    if not CLEAR_REFS.exists():
        raise RuntimeError(f"Peak memory needs {CLEAR_REFS}, which this system does not have.")
    make = adder if task == "call" else step
    call = make(contestant, size)
    call()
    gc.collect()
    malloc_trim = libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)
    before = memory("VmRSS")
    CLEAR_REFS.write_text("5")  # resets the peak
    for _ in range(3):
        result = call()
        del result
    peak = memory("VmHWM") - before
    sys.stdout.write("\n" + json.dumps({"peak_mb": peak, "before_mb": before}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
