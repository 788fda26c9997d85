"""What XLA's text of a compiled program says."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

TARGET = "t2j_torch_call"
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")

_COMPUTATION = re.compile(r"(?:ENTRY )?%([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\(([^)]*)\)")


class Instruction(NamedTuple):
    """A line of a program. `makers` are the names of its operands; `shape` is that of its result, with the layout."""

    computation: str
    name: str
    shape: str
    opcode: str
    makers: tuple[str, ...]
    text: str

    def attribute(self, name: str) -> int | None:
        """An integer among the attributes that the handler reads."""
        found = re.search(rf"backend_config=\{{.*\b{name} = (\d+)", self.text)
        return found and int(found[1])


class Program:
    """The instructions of a program, those inside of fusions included."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.instructions: list[Instruction] = []
        computation = ""
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                computation = found[1]
            elif found := _INSTRUCTION.match(line):
                name, shape, opcode, operands = found.groups()
                makers = tuple(re.findall(r"%([\w.-]+)", operands))
                self.instructions.append(Instruction(computation, name, shape, opcode, makers, line))
        self._by_name = {(i.computation, i.name): i for i in self.instructions}

    @property
    def opcodes(self) -> Counter[str]:
        return Counter(i.opcode for i in self.instructions)

    @property
    def calls(self) -> list[Instruction]:
        """The calls of torch functions."""
        return [i for i in self.instructions if f'custom_call_target="{TARGET}"' in i.text]

    @property
    def moves(self) -> Counter[str]:
        """Instructions that copy an array of several elements, or change the order of its elements."""
        kinds = ("copy", "copy-start", "transpose")
        return Counter(i.opcode for i in self.instructions if i.opcode in kinds and "[]" not in i.shape)

    @property
    def collectives(self) -> Counter[str]:
        """Instructions that send data between GPUs; those in two parts are counted once."""
        opcodes = [i.opcode.removesuffix("-start") for i in self.instructions]
        return Counter(opcode for opcode in opcodes if opcode in COLLECTIVES)

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """What computes an operand, behind bitcasts and parts of tuples."""
        found = self._by_name[instruction.computation, instruction.makers[index]]
        while found.opcode in ("get-tuple-element", "bitcast"):
            found = self._by_name[found.computation, found.makers[0]]
        return found

    def bodies_of_loops(self) -> set[str]:
        return set(re.findall(r"\bbody=%([\w.-]+)", self.text))
