"""`python -m t2j_core`: what is installed, and one call that shows whether it works."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ._diagnose.info import environment_info, self_test


def main(arguments: Sequence[str] = ()) -> int:
    """Print the environment and the outcome of a self-test; 1 if the test fails."""
    parser = argparse.ArgumentParser(
        prog="python -m t2j_core",
        description="Print versions, devices and settings, and whether a call of PyTorch from JAX works. "
        "The exit status is 1 if it does not.",
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON, with the keys of environment_info")
    as_json = parser.parse_args(arguments).json
    info = environment_info()
    if not as_json:
        _print(info)
    passed, text = _self_test()
    if as_json:
        print(json.dumps({**info, "self_test": {"passed": passed, "text": text}}, indent=2, default=str))
    else:
        print(f"\n     self-test: {'passed' if passed else 'FAILED'}: {text}")
    return 0 if passed else 1


def _self_test() -> tuple[bool, str]:
    try:
        return True, self_test()
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


def _print(info: Mapping[str, Any]) -> None:
    for key, value in info.items():
        print(f"{key:>14}: {_shown(value)}")


def _shown(value: object) -> str:
    """A dict on one line, a list on a line for each item."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {item or 'none'}" for name, item in value.items()) or "none"
    return f"\n{'':16}".join(value) or "none" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
