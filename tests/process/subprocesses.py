"""Run Python code in a process of its own, with a time limit of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass

PRELUDE = """
import faulthandler, os, sys
faulthandler.enable()
import gc, threading, time
import jax, jax.numpy as jnp, numpy as np, torch
from t2j_core import *
from t2j_core.testing import counters, live_functions
torch.set_num_threads(1)
"""

MANY_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "64"}


@dataclass
class Finished:
    """How a process ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out[-3000:]}\n--- stderr\n{self.err[-6000:]}"


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    """A running process for `code` after the prelude."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", PRELUDE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=env,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], limit: float = 150) -> Finished:
    """Wait for a process; kill it with its children if it hangs."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler then prints where every thread is
        try:
            out, err = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        err += f"\nHANGS: stopped after {limit} s"
    return Finished(process.returncode, out, err)


def run(code: str, limit: float = 150, **environment: str) -> Finished:
    """Run `code` after the prelude to its end."""
    return finish(start(code, **environment), limit)


def checks(*functions: str, prelude: str = "", limit: float = 240, **environment: str) -> dict[str, str]:
    """Run several functions (source text) in one process; answer "ok" or a traceback for each by name."""
    code = textwrap.dedent(prelude) + "".join(map(textwrap.dedent, functions))
    names = [line.split("(")[0][4:] for line in code.splitlines() if line.startswith("def check_")]
    code += f"""
import json, traceback
for name in {names!r}:
    print("BEGIN", name, flush=True)
    try:
        globals()[name]()
        print("\\nRESULT", json.dumps([name, "ok"]), flush=True)
    except SystemExit:  # a forked child that ends
        raise
    except BaseException:
        print("\\nRESULT", json.dumps([name, traceback.format_exc()[-3000:]]), flush=True)
"""
    finished = run(code, limit, **environment)
    found = dict(json.loads(line[7:]) for line in finished.out.splitlines() if line.startswith("RESULT "))
    results = {name: found.get(name, f"did not finish: {finished}") for name in names}
    results["exit"] = "ok" if finished.code == 0 else str(finished)
    return results
