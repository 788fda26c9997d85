"""Run the checks of one operator or module after another, in a process that may die.

Every line of the input is a request. Every line of the output is one result, written as soon as it is known, so that
a crash loses only the check that caused it.

`python worker.py SUITE DEVICE`. With a GPU, samples and native torch are on the GPU; results are compared on the host.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

warnings.simplefilter("ignore")

import jax
import torch
from case import Case, How
from fair import check_is_fair, seed
from judge import NotCounted
from t2j_autodiff import clear_residuals

CLEAR_AFTER = 50  # operators; compiled programs are not needed again


def suite_of(name: str) -> Any:
    """What is run: the subjects, their names, their samples, and the checks of each."""
    from module_samples import Modules
    from operator_samples import Float8, Operators, SecondOrder

    if name in ("train", "eval"):
        return Modules(training=name == "train")
    return {"operators": Operators, "second": SecondOrder, "float8": Float8}[name]()


def results_of(suite: Any, subject: Any, how: How, first: int) -> Iterator[dict[str, Any]]:
    """Yield one result per check, and before it a line that names the check."""
    yield {"sample": first, "check": "samples"}
    skipped = {"sample": 0, "check": "samples", "outcome": "not counted"}
    try:
        cases = suite.cases(subject, how)
    except NotCounted as error:
        yield {**skipped, "reason": str(error)}
        return
    except Exception as error:
        reason = f"torch cannot make samples ({type(error).__name__})"
        yield {**skipped, "reason": reason, "lost": has_lost(how.device)}
        return
    for number, case in enumerate(cases):
        for check in suite.checks(how) if number >= first else ():
            yield {"sample": number, "check": check}
            result = result_of(case, check)
            yield {"sample": number, "check": check, **result, "lost": has_lost(how.device)}
            if check == "forward" and result["outcome"] != "passed":
                break  # every later check would fail in the same way


def has_lost(device: str) -> bool:
    """Whether the process can no longer use its GPU, as after an illegal access or a failed assertion in a kernel."""
    try:
        if device != "cpu":
            torch.cuda.synchronize()
    except Exception:
        return True
    return False


def result_of(case: Case, check: str) -> dict[str, Any]:
    """The outcome of one check, with the reason if it did not pass."""
    start = time.perf_counter()
    outcome, reason = "passed", ""
    try:
        if check == "forward":
            check_is_fair(case)
        elif not case.tensors:
            raise NotCounted("no tensor input")
        seed(3)
        getattr(case, check)()
    except NotCounted as error:
        outcome, reason = "not counted", str(error)
    except Exception as error:
        outcome, reason = "failed", first_line(error)
    found = {"outcome": outcome, "reason": reason, "seconds": round(time.perf_counter() - start, 3)}
    return found if outcome == "not counted" else found | {"not_compiled": first_line_of(case.not_compiled)}


def first_line(error: Exception) -> str:
    """An exception in one line. Under `jax.jit` the library's exception is inside an XLA error."""
    return first_line_of(f"{type(error).__name__}: {str(error).strip()}")


def first_line_of(text: str) -> str:
    """The first line of a text, shortened."""
    text = text.partition("\n")[0]
    return re.sub(r"^JaxRuntimeError: \w+: \[t2j error \d+\] ([\w]+\.)*", "", text)[:200]


def waiting(run: Callable[..., Any]) -> Callable[..., Any]:
    """A program that waits for its results.

    Until then its arguments must stay alive, because torch's allocator would reuse their memory.
    """
    return lambda f: lambda *args: jax.block_until_ready(run(f)(*args))


def prepare(device: str) -> str:
    """Initialise the device, or raise, and return its name."""
    if device == "cpu":
        return ""
    jax.devices(device)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.cuda.get_device_name()


def main() -> None:
    """Serve requests: `{"op": index, "dtype": ..., "samples": ..., "first": ..., "eager": ..., "compile": ...}`."""
    name, device = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # operators may print
    faulthandler.enable()
    torch.set_num_threads(1)

    def say(line: dict[str, Any]) -> None:
        replies.write(json.dumps(line) + "\n")
        replies.flush()

    kind = prepare(device)  # before an import after which torch refuses to set cuDNN flags
    suite = suite_of(name)
    warnings.simplefilter("ignore")
    say({"device": kind, "names": suite.names})
    for count, line in enumerate(sys.stdin, 1):
        request = json.loads(line)
        run = (lambda f: f) if request["eager"] else jax.jit
        run = run if device == "cpu" else waiting(run)
        how = How(request["dtype"], request["samples"], run, device, request["compile"])
        for result in results_of(suite, suite.subjects[request["op"]], how, request["first"]):
            say(result)
        say({"done": request["op"]})
        if count % CLEAR_AFTER == 0:
            jax.clear_caches()
            clear_residuals()


if __name__ == "__main__":
    main()
