"""Parts of texts: lists of names, and text that C++ accepts."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[object], most: int = 4) -> str:
    """The first names, and how many more there are.

    >>> print(listed("abcdefg"))
    a, b, c, d and 3 more
    """
    texts = list(map(str, names))
    more = f" and {len(texts) - most} more" if len(texts) > most + 1 else ""
    return ", ".join(texts[: most if more else None]) + more


def utf8(text: str) -> str:
    r"""A text that C++ accepts: lone surrogates, which UTF-8 lacks, become escapes.

    >>> print(utf8("a\udc80"))
    a\udc80
    """
    return text.encode("utf-8", "backslashreplace").decode()
