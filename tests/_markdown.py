"""Read the fenced blocks of Markdown pages, and the text between them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

# Some pages split calls over devices. JAX reads these variables when it first looks for devices.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("NPROC", "64")

_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=fence)[ ]*$", flags=re.M | re.S)
_OPTIONS = re.compile(r"\A(:[\w-]+:.*\n)+")


class Block(NamedTuple):
    """A fenced block."""

    language: str  # the info string: "python", "bash", "{code-cell} python"
    text: str  # without the options of a directive, such as `:tags: [hide-input]`; their lines are empty
    before: str  # the text between the previous block and this one
    line: int


def is_executed(page: Path) -> bool:
    """Whether the page runs when the site is built."""
    return re.match(r"---\n.*?^kernelspec:", page.read_text(), flags=re.M | re.S) is not None


def all_blocks(page: Path) -> list[Block]:
    content, found, end = page.read_text(), [], 0
    for match in _FENCE.finditer(content):
        line = content[: match.start("text")].count("\n")
        info, text = match["info"].strip(), match["text"]
        if info.startswith("{"):
            text = _OPTIONS.sub(lambda options: "\n" * options[0].count("\n"), text)
        found.append(Block(info, text, content[end : match.start()], line))
        end = match.end()
    return found


def blocks(page: Path, language: str) -> list[str]:
    return [block.text for block in all_blocks(page) if block.language == language]
