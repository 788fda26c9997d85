"""Run the checks of cases of one package, each in a process of its own: `python harness.py PACKAGE NAME ...`.

Each line of the output is one result, written as soon as it is known, so that a crash loses only the check that caused
it. Whatever else a process prints goes elsewhere, and counts as stray output. The processes are forks of one that has
imported the package, torch and JAX, which takes longer than most cases, and that has used none of them.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

CHECKS = ("forward", "second_call", "vjp", "vmap", "vmap_vjp", "jvp", "hvp", "unchanged", "quiet")
LIMIT = 300  # seconds for one check; a machine may be busy


def results_of(case: Any) -> Iterator[dict[str, Any]]:
    """Yield one result per check, and before it a line that names the check."""
    from corpus_case import TorchCase
    from jax_checks import JaxChecks
    from torch_checks import TorchChecks
    from watch import Watch

    yield {"check": CHECKS[0]}
    _seed()
    checks = (TorchChecks if isinstance(case, TorchCase) else JaxChecks)(case, Watch())
    for name in CHECKS:
        yield {"check": name}
        result = result_of(checks, name)
        yield {"check": name, **result}
        if name == CHECKS[0] and result["outcome"] != "passed":
            return  # every later check would fail in the same way
    if isinstance(case, TorchCase):
        yield {"check": "step"}
        yield {"check": "step", **step_of(checks)}


def result_of(checks: Any, name: str) -> dict[str, Any]:
    """The outcome of one check, with the reason if it did not pass."""
    from agreement import NotCounted, first_line

    start = time.perf_counter()
    outcome, reason = "passed", ""
    try:
        getattr(checks, name)()
    except NotCounted as error:
        outcome, reason = "not counted", str(error)
    except Exception as error:
        outcome = "failed"
        reason = re.sub(r"^JaxRuntimeError: \w+: \[t2j error \d+\] ([\w]+\.)*", "", first_line(error))
        _trace(error)
    return {"outcome": outcome, "reason": reason, "seconds": round(time.perf_counter() - start, 3)}


def step_of(checks: Any) -> dict[str, Any]:
    """The time of a step, or why it was not measured."""
    import pace

    try:
        return pace.step(checks)
    except Exception as error:
        return {"reason": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}


def _trace(error: Exception) -> None:
    """With `CORPUS_TRACE` set, say where a check failed."""
    if os.environ.get("CORPUS_TRACE"):
        traceback.print_exception(error)


def _seed() -> None:
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


def run_case(case: Any, say: Callable[..., None]) -> None:
    """Run one case; a check that takes too long ends the process."""
    import jax
    import torch
    from corpus_case import JaxCase

    torch.set_num_threads(1)
    jax.config.update("jax_enable_x64", case.x64)
    jax.config.update("jax_disable_most_optimizations", isinstance(case, JaxCase))  # LLVM would take most of the time
    for line in results_of(case):
        signal.alarm(LIMIT)
        say(**line)


def main() -> None:
    """Run cases, one after another."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()

    def say(**line: Any) -> None:
        replies.write(json.dumps(line) + "\n")
        replies.flush()

    import jax_checks  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torch_checks  # noqa: F401
    from corpus_case import cases_of
    from jax._src import xla_bridge

    package, *names = sys.argv[1:]
    cases = {case.name: case for case in cases_of(package)}
    if xla_bridge.backends_are_initialized():
        raise SystemExit(f"importing {package} starts JAX, after which a fork hangs: import it in `make`")
    for name in names:
        say(case=name)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run_case(cases[name], say)
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        say(case=name, code=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
