"""Parts of texts: lists of names, numbers with units, and text that C++ accepts."""

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


_ALMOST = 0.99995  # what is rounded to 1000.0 of a unit has the next one


def rounded(number: int) -> str:
    """A large number in short.

    >>> rounded(1234), rounded(22_712_832), rounded(999_999_999)
    ('1,234', '22.7M', '1.0B')
    """
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if number >= _ALMOST * size:
            return f"{number / size:.1f}{letter}"
    return f"{number:,}"


def size_of(nbytes: int) -> str:
    """A number of bytes in short.

    >>> size_of(244), size_of(90_851_328), size_of(999_999)
    ('244 bytes', '90.9 MB', '1.0 MB')
    """
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= _ALMOST * size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


def utf8(text: str) -> str:
    r"""A text that C++ accepts: lone surrogates, which UTF-8 lacks, become escapes.

    >>> print(utf8("a\udc80"))
    a\udc80
    """
    return text.encode("utf-8", "backslashreplace").decode()
