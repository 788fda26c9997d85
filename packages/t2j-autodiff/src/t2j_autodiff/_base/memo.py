"""A table of values that are made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from t2j_core.extend import remember


class Memo:
    """Values by key, each made when first asked for. Threads that race for one all get the same.

    No lock, because making a value may run the user's code.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of `key`, made now if there is none."""
        value = self._values.get(key)
        return remember(self._values, key, make()) if value is None else value
