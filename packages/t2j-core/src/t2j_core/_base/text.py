"""Texts of the user's that go to C++."""

from __future__ import annotations


def utf8(text: str) -> str:
    r"""A text that C++ accepts: lone surrogates, which UTF-8 lacks, become escapes.

    >>> print(utf8("a\udc80"))
    a\udc80
    """
    return text.encode("utf-8", "backslashreplace").decode()
