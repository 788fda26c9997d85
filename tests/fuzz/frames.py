"""Random call frames, most of them wrong in a few places, and what the handler must make of each.

    python -m fuzz.frames --seed 0 --count 10000

in `tests/`. A handler may neither crash, nor run a function on a frame that differs from what it was traced with.
"""

from __future__ import annotations

import argparse
import ctypes
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from cuda_fake import xla_ffi as ffi
from t2j_core._run.torch_fn import TorchFn
from t2j_core._signature.signature import Leaf, flat_signature
from t2j_core.extend import Options
from t2j_core.testing import assert_nothing_escaped, counters

from . import xla

F32, I32 = (np.dtype("float32"), torch.float32), (np.dtype("int32"), torch.int32)
NUMBERS = {"float32": 11, "int32": 4}
SIGNATURES = (
    (((2, 3), F32), ((4,), I32)),
    (((), F32),),
    (((0, 5), F32), ((1, 1, 1), I32)),
    (),
)
ODD = (-(2**63), -1, 0, 1, 2, 3, 7, 21, 255, 2**31 - 1, 2**62)
NO_IDS = tuple(n for n in ODD if not 0 < n < 2**31 - 1)  # numbers that no function has
MINORS = (3, 4, 5, 6, 9)


@dataclass(frozen=True)
class Buffer:
    """A buffer as XLA hands it over. `rank` is at most the number of `dims`, which are `None` for a null pointer."""

    dtype: int
    dims: tuple[int, ...] | None
    rank: int
    nbytes: int | None  # of its memory, None for a null pointer
    offset: int = 0

    @classmethod
    def of(cls, leaf: Leaf) -> Buffer:
        """The right buffer for an operand or a result."""
        nbytes = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        return cls(NUMBERS[leaf.dtype.name], leaf.shape, len(leaf.shape), nbytes or None)

    def fits(self, right: Buffer) -> bool:
        """Whether a function that wants the buffer `right` may run on this one."""
        if (self.dtype, self.rank) != (right.dtype, right.rank) or (self.dims is None and self.rank):
            return False
        same = self.rank == 0 or (self.dims or ())[: self.rank] == right.dims
        return same and (self.nbytes is not None or right.nbytes is None)


@dataclass(frozen=True)
class Attribute:
    """An attribute: `value` is a number for a scalar, bytes for text, None for a null pointer."""

    name: bytes | None
    kind: int
    value: int | bytes | None
    dtype: int = ffi.S64


@dataclass(frozen=True)
class Frame:
    """What a handler gets. `None` in place of a buffer is a null pointer."""

    operands: tuple[Buffer | None, ...]
    results: tuple[Buffer | None, ...]
    attributes: tuple[Attribute, ...]
    sizes: tuple[int | None, int | None] = (None, None)  # told instead of the number of operands and results
    stage: int = ffi.EXECUTE
    extension: int | None = None  # the type of an extension

    def fits(self, right: Frame) -> bool:
        """Whether the function that wants the frame `right` may run."""
        return all(
            (len(mine) if size is None else size) == len(wanted)
            and all(a is not None and a.fits(b) for a, b in zip(mine, wanted, strict=False))
            for mine, wanted, size in (
                (self.operands, right.operands, self.sizes[0]),
                (self.results, right.results, self.sizes[1]),
            )
        )

    def names(self, right: Frame) -> bool:
        """Whether the attributes are those of the function."""
        found: dict[bytes | None, Attribute] = {}
        for attribute in self.attributes:
            found.setdefault(attribute.name, attribute)
        return all(found.get(wanted.name) == wanted for wanted in right.attributes)


class Site:
    """A function that counts its calls, and the right frame for it."""

    def __init__(self, operands: Sequence[tuple[tuple[int, ...], Any]], outputs: str) -> None:
        self.calls = 0
        leaves = tuple(Leaf(shape, *dtype) for shape, dtype in operands)
        signature = flat_signature("site", leaves, (*leaves, Leaf((2,), *F32)))
        options = Options(outputs=outputs).for_calls()
        self.fn = TorchFn(self._run, signature, options, takes_operands=outputs == "copy")
        buffers = tuple(map(Buffer.of, leaves))
        attributes = (Attribute(b"id", ffi.SCALAR, self.fn.id), Attribute(b"call", ffi.STRING, b""))
        self.frame = Frame(buffers, (*buffers, Buffer(11, (2,), 1, 8)), attributes)

    def _run(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        return (*(t + 1 for t in tensors), torch.ones(2))


# --- mutations --------------------------------------------------------------------------------------------------------


def mutated(r: random.Random, frame: Frame) -> Frame:
    """A frame with up to three changes."""
    for _ in range(r.choice((0, 1, 1, 2, 3))):
        frame = r.choice(
            (with_other_buffer, with_other_buffer, with_other_count, with_other_attribute, with_other_head)
        )(r, frame)
    return frame


def with_other_buffer(r: random.Random, frame: Frame) -> Frame:
    """One operand or result is another, or a null pointer."""
    field = r.choice(("operands", "results"))
    buffers = list(getattr(frame, field))
    if buffers:
        place = r.randrange(len(buffers))
        buffer = buffers[place]
        buffers[place] = None if buffer is None or r.random() < 0.1 else other_buffer(r, buffer)
    return replace(frame, **{field: tuple(buffers)})


def other_buffer(r: random.Random, buffer: Buffer) -> Buffer:
    """A buffer that differs in one thing."""
    dims = buffer.dims or ()
    kind = r.choice(("dtype", "dims", "fewer", "more", "rank", "no dims", "no memory", "unaligned"))
    if kind == "dtype":
        return replace(buffer, dtype=r.choice((*range(40), *(n for n in ODD if abs(n) < 2**31))))
    if kind == "dims" and dims:
        place = r.randrange(len(dims))
        return replace(buffer, dims=(*dims[:place], r.choice(ODD), *dims[place + 1 :]))
    if kind == "fewer":
        return replace(buffer, dims=dims[1:], rank=min(buffer.rank, len(dims[1:])))
    if kind == "more":
        dims = (*dims, *(r.choice(ODD) for _ in range(r.choice((1, 2, 60)))))
        return replace(buffer, dims=dims, rank=len(dims))
    if kind == "rank":
        return replace(buffer, rank=r.choice((-1, -(2**63), *range(len(dims)))))
    if kind == "no dims":
        return replace(buffer, dims=None)
    if kind == "no memory":
        return replace(buffer, nbytes=None)
    return replace(buffer, offset=r.choice((1, 2, 4)))


def with_other_count(r: random.Random, frame: Frame) -> Frame:
    """Another number of operands or results: there are more or fewer, or the frame says so."""
    if r.random() < 0.5:
        field = r.choice(("operands", "results"))
        buffers = getattr(frame, field)
        return replace(frame, **{field: buffers[:-1] if r.random() < 0.5 else (*buffers, *buffers[:1])})
    few = tuple(r.choice((None, 0, -1, -(2**63), len(b) - 1)) for b in (frame.operands, frame.results))
    return replace(frame, sizes=few)


def with_other_attribute(r: random.Random, frame: Frame) -> Frame:
    """An attribute is missing, twice there, renamed, or of another type or value; or there is one more."""
    attributes = list(frame.attributes)
    place = r.randrange(max(len(attributes), 1))
    extra = Attribute(r.choice((b"pair", b"", b"i", b"idx", None, bytes(300))), r.choice((3, 4, 0, 7)), r.choice(ODD))
    kind = r.choice(("missing", "more", "name", "kind", "value", "text", "null"))
    if kind == "more" or not attributes:
        attributes.insert(place, replace(extra, value=b"\xff\0x" if extra.kind == ffi.STRING else extra.value))
    elif kind == "missing":
        del attributes[place]
    elif kind == "name":
        attributes[place] = replace(attributes[place], name=extra.name)
    elif kind == "kind":
        attributes[place] = replace(attributes[place], kind=r.choice((0, 1, 2, 5, -1, 2**31 - 1)))
    elif kind == "null":
        attributes[place] = replace(attributes[place], value=None)
    elif attributes[place].kind == ffi.SCALAR:
        attributes[place] = replace(attributes[place], value=r.choice(NO_IDS), dtype=r.choice((ffi.S64, 4, 12, 99)))
    else:
        text = bytes(r.randrange(256) for _ in range(r.choice((1, 5, 200))))
        attributes[place] = replace(
            attributes[place], value=r.choice((text, b'{"name": 1}', b"[]", b"site", b"\0" * 9))
        )
    return replace(frame, attributes=tuple(attributes))


def with_other_head(r: random.Random, frame: Frame) -> Frame:
    """Another stage, or an extension of a type that is not known."""
    return replace(frame, stage=r.choice((0, 1, 2, 3, 4, -1)), extension=r.choice((None, 0, 2, 77)))


# --- structures -------------------------------------------------------------------------------------------------------


class Memory(list[Any]):
    """What a structure points to."""

    def address(self, thing: Any) -> int:
        """Keep a structure, and return where it is."""
        self.append(thing)
        return ctypes.addressof(thing)

    def array(self, kind: Any, items: Sequence[Any]) -> int | None:
        """The address of a C array of exactly these items."""
        return self.address((kind * len(items))(*items)) if items else None

    def block(self, buffer: Buffer) -> int | None:
        """Memory of exactly this size, so that a sanitizer sees what is read behind it."""
        if buffer.nbytes is None:
            return None
        self.append(np.zeros(buffer.nbytes + buffer.offset, np.uint8))
        return int(self[-1].ctypes.data) + buffer.offset

    def buffers(self, buffers: Sequence[Buffer | None], size: int | None) -> Any:
        """The structure for operands or results."""
        pointers = [None if b is None else self.address(self._buffer(b)) for b in buffers]
        types = self.array(ffi.I32, [1] * len(buffers))
        return ffi.Buffers(len(buffers) if size is None else size, types, self.array(ctypes.c_void_p, pointers))

    def _buffer(self, buffer: Buffer) -> Any:
        dims = None if buffer.dims is None else self.array(ffi.I64, buffer.dims)
        return ffi.Buffer(buffer.dtype, self.block(buffer), buffer.rank, dims)

    def attributes(self, attributes: Sequence[Attribute]) -> Any:
        """The structure for attributes."""
        names = [None if a.name is None else self.address(self._span(a.name)) for a in attributes]
        values = [None if a.value is None else self.address(self._value(a)) for a in attributes]
        types = self.array(ffi.I32, [a.kind for a in attributes])
        pointers = self.array(ctypes.c_void_p, names), self.array(ctypes.c_void_p, values)
        return ffi.Attrs(len(attributes), types, *pointers)

    def _span(self, text: bytes) -> Any:
        self.append(text)
        return ffi.Span(text, len(text))

    def _value(self, attribute: Attribute) -> Any:
        if isinstance(attribute.value, bytes):
            return self._span(attribute.value)
        return ffi.Scalar(attribute.dtype, self.address(ctypes.c_int64(attribute.value or 0)))

    def frame(self, frame: Frame, minor: int, context: int) -> Any:
        """The structure for a frame."""
        extension = None
        if frame.extension is not None:
            extension = self.address(ffi.MetadataExtension(ctypes.sizeof(ffi.MetadataExtension), frame.extension))
        structure = ffi.CallFrame(
            ctypes.addressof(xla.api(minor)),
            context,
            frame.stage,
            self.buffers(frame.operands, frame.sizes[0]),
            self.buffers(frame.results, frame.sizes[1]),
            self.attributes(frame.attributes),
            None,
        )
        structure.extension = extension
        return structure


# --- the judge --------------------------------------------------------------------------------------------------------


def call(handler: str, frame: Frame, minor: int, context: int) -> str | None:
    """Call a handler with a frame; the text of its error, or None."""
    memory = Memory()
    return xla.call(handler, memory.frame(frame, minor, context))


def run_one(r: random.Random, sites: Sequence[Site], context: int) -> bool:
    """Load a program of a random site and run it, each with a random frame. Whether the function ran."""
    site, minor = r.choice(sites), r.choice(MINORS)
    keeps_state = minor <= 5
    at_load, at_call = mutated(r, replace(site.frame, operands=(), results=())), mutated(r, site.frame)
    error = call("instantiate", replace(at_load, stage=ffi.INSTANTIATE), minor, context)
    assert (error is None) == (at_load.names(site.frame) or not keeps_state), error
    before = site.calls
    error = call("cpu", at_call, minor, context)
    is_known = context in xla.states if keeps_state else at_call.names(site.frame)
    if keeps_state and not is_known:  # XLA would not run it; the site is then built from the attributes of the call
        is_known = at_call.names(site.frame)
    is_right = is_known and at_call.fits(site.frame)
    assert (error is None) == is_right, error
    assert site.calls - before == is_right
    assert error is None or error.strip()
    xla.delete(context)
    return is_right


def run(seed: int, count: int) -> int:
    """Run frames of a seed, and return how many were right."""
    sites = [Site(operands, outputs) for operands in SIGNATURES for outputs in ("copy", "auto")]
    right = 0
    for number in range(count):
        try:
            right += run_one(random.Random(f"{seed} {number}"), sites, number + 1)
        except AssertionError as error:
            raise AssertionError(f"frame {number} of seed {seed}: {error}") from error
    assert_nothing_escaped()
    assert counters()["calls_in_flight"] == counters()["live_sites"] == 0
    return right


def main() -> None:
    """Run frames from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    print(f"{options.count} frames of seed {options.seed}: {run(options.seed, options.count)} right")


if __name__ == "__main__":
    main()
