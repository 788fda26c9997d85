"""A soak: random calls of all kinds for a long time. Values stay right, and nothing grows.

    python tests/random_programs/soak.py --minutes 20
    python tests/random_programs/soak.py --seed 7 --round 123

The second line repeats one round, whose seed and number are in the message of a failure.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import torch
from resources import grown_too_much, growth, held
from rounds import ROUNDS, draw_round

EVERY = 10  # rounds between two looks at what the process holds


def run_round(seed: int, number: int) -> str:
    """Make the calls of one round, and return its kind."""
    r = random.Random(f"{seed} {number}")
    name = draw_round(r)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a round does on purpose: it keeps tensors, or its batch loops
            ROUNDS[name][0](r)
    except BaseException:
        print(f"round {number} ({name}): --seed {seed} --round {number} repeats it", file=sys.stderr)
        raise
    return name


def numbers(rounds: int, minutes: float) -> Iterator[int]:
    """The numbers of the rounds: at least so many, and for at least so long."""
    end = time.monotonic() + 60 * minutes
    number = 0
    while number < rounds or time.monotonic() < end:
        yield number
        number += 1


def soak(seed: int, rounds: int, minutes: float) -> dict[str, Any]:
    """Run rounds; raise `AssertionError` for a wrong value, or where the process grows."""
    begin, samples, kinds = time.monotonic(), [], Counter()
    for number in numbers(rounds, minutes):
        kinds[run_round(seed, number)] += 1
        if number % EVERY == EVERY - 1:
            samples.append(held())
            print(f"{number + 1} rounds", file=sys.stderr, flush=True)  # so that a crash tells after how many it came
    assert samples, f"there were fewer than {EVERY} rounds"
    too_much = grown_too_much(samples)
    assert not too_much, f"grown from the second quarter to the last: {too_much}, in {samples}"
    return {
        "seed": seed,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "rounds": dict(sorted(kinds.items())),
        "failures": 0,
        "growth": growth(samples),
        "last": samples[-1],
        "devices": len(jax.devices()),
        "versions": {"jax": jax.__version__, "torch": torch.__version__.split("+")[0]},
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, default=2, help="at least so long")
    parser.add_argument("--rounds", type=int, default=4 * EVERY, help="at least so many, however slow the machine is")
    parser.add_argument("--round", type=int, help="repeat this one")
    parser.add_argument("--output", type=Path, help="write the counts to a file")
    options = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits an ignored SIGINT
    print(f"seed {options.seed}", flush=True)
    if options.round is not None:
        run_round(options.seed, options.round)
        return
    report = soak(options.seed, options.rounds, options.minutes)
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
