"""`python -m t2j_core`: what is installed, and one call that shows whether it works."""

from __future__ import annotations

import sys

from ._diagnose.info import environment_info, self_test


def main() -> int:
    """Print the environment and the outcome of a self-test; 1 if the test fails."""
    for key, value in environment_info().items():
        print(f"{key:>14}: {_shown(value)}")
    try:
        print(f"\n     self-test: passed: {self_test()}")
    except Exception as error:
        print(f"\n     self-test: FAILED: {type(error).__name__}: {error}")
        return 1
    return 0


def _shown(value: object) -> str:
    """A dict on one line, a list on a line for each item."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {item or 'none'}" for name, item in value.items()) or "none"
    return f"\n{'':16}".join(value) or "none" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
