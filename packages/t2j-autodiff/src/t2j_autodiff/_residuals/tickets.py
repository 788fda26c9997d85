"""Where a forward on a GPU leaves the number of its kept graph on the host, for the derivative it is paired with.

A derivative that reads the number from the device waits for all work before it. JAX lowers a forward and its derivative
into one block of a program, where both get the number of their pair. But XLA inlines functions that are called twice
and unrolls loops, so several forwards of a program may have the same pair, in any order with their derivatives. So a
number is used only if a single forward of the pair has run in the execution. That is the forward of this derivative,
because a forward runs before its derivative.

An execution runs on one thread for each device, so each thread has its own table. While a call of one execution runs, a
signal handler or a finalizer may run others: the table remembers the last few.
"""

from __future__ import annotations

import threading

from t2j_core.extend import current_pair

UNKNOWN = -1
NOTHING = 0
_MOST_NESTED = 16


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.executions: dict[tuple[int, int], dict[int, int]] = {}  # the one used last is the last

    def numbers(self, execution: tuple[int, int]) -> dict[int, int]:
        """What forwards of an execution have left, by pair."""
        found = self.executions.pop(execution, None)
        if found is None:
            found = {}
            while len(self.executions) >= _MOST_NESTED:
                self.executions.pop(next(iter(self.executions)), None)
        self.executions[execution] = found
        return found


_of_thread = _OfThread()


def leave(number: int) -> None:
    """Leave a number for the derivative of this call's pair, if it has one."""
    if (call := current_pair()) is not None:
        run, device, pair = call
        numbers = _of_thread.numbers((run, device))
        numbers[pair] = UNKNOWN if pair in numbers else number


def take() -> int:
    """The number that this call's forward has left, then `NOTHING`. `UNKNOWN` if it must be read from the device."""
    if (call := current_pair()) is None:
        return UNKNOWN
    run, device, pair = call
    numbers = _of_thread.numbers((run, device))
    number = numbers.get(pair, UNKNOWN)
    if number != UNKNOWN:
        numbers[pair] = NOTHING
    return number
