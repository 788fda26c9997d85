"""What each operation of torch draws, and how a sampler draws it instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload

from .distributions import FLOATING, Bernoulli, Distribution, Exponential, Integers, Normal, Uniform, dtypes_of

Fill = Callable[[torch.Tensor, Distribution], None]
"""Fills a tensor that is contiguous and of a dtype that the sampler writes."""
_Arguments = Mapping[str, Any]
_Replacement = Callable[[Fill, _Arguments], Any]
_DistributionOf = Callable[[_Arguments, torch.dtype], Distribution]


class NotReplacedError(Exception):
    """Torch is to run the operation: it is not one of these, or its arguments are invalid."""


def replacement_of(func: OpOverload) -> _Replacement | None:
    """What runs instead of an operation that draws, given its arguments by name. It may raise `NotReplacedError`."""
    return _REPLACEMENTS.get(func._schema.name)


def filled(fill: Fill, out: torch.Tensor, distribution: Distribution) -> torch.Tensor:
    """`out`, of any layout and dtype, after it was filled. The numbers do not depend on how it lies in memory."""
    real = torch.view_as_real(out) if out.is_complex() else out
    dtypes = dtypes_of(distribution)
    if real.dtype not in dtypes and not isinstance(distribution, (Integers, Bernoulli)):
        raise NotReplacedError
    if real.is_contiguous() and real.dtype in dtypes and not real.is_neg():
        fill(real, distribution)
        return out
    dtype = torch.int64 if isinstance(distribution, Integers) else real.dtype if real.dtype in dtypes else torch.bool
    drawn = torch.empty(real.shape, dtype=dtype, device=real.device)
    fill(drawn, distribution)
    real.copy_(drawn)
    return out


# --- distributions, from arguments ------------------------------------------------------------------------------------


def _require(*conditions: bool) -> None:
    if not all(conditions):
        raise NotReplacedError


def _unit(a: _Arguments, dtype: torch.dtype) -> Uniform:
    return Uniform()


def _uniform(a: _Arguments, dtype: torch.dtype) -> Uniform:
    low, high = float(a["from"]), float(a["to"])
    _require(low <= high, high - low <= torch.finfo(dtype).max if dtype in FLOATING else math.isfinite(high - low))
    return Uniform(low, high)


def _standard_normal(a: _Arguments, dtype: torch.dtype) -> Normal:
    return Normal(0.0, math.sqrt(0.5) if dtype.is_complex else 1.0)


def _normal(a: _Arguments, dtype: torch.dtype) -> Normal:
    _require(a["std"] >= 0)
    return Normal(float(a["mean"]), float(a["std"]) * (math.sqrt(0.5) if dtype.is_complex else 1.0))


def _exponential(a: _Arguments, dtype: torch.dtype) -> Exponential:
    _require(0 < a["lambd"] < math.inf, not dtype.is_complex)
    return Exponential(float(a["lambd"]))


def _bernoulli(a: _Arguments, dtype: torch.dtype) -> Bernoulli:
    _require(0 <= a["p"] <= 1, not dtype.is_complex)
    return Bernoulli(float(a["p"]))


_DIGITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}


def _most(dtype: torch.dtype) -> int:
    """The largest integer that `randint` and `random_` draw."""
    return 1 << _DIGITS[dtype] if dtype in FLOATING else 1 if dtype == torch.bool else torch.iinfo(dtype).max


def _least(dtype: torch.dtype) -> int:
    return -_most(dtype) if dtype in FLOATING else 0 if dtype == torch.bool else torch.iinfo(dtype).min


def _integers(a: _Arguments, dtype: torch.dtype) -> Integers:
    _require(not dtype.is_complex)
    low = a.get("low", a.get("from", 0))
    high = a["high"] if "high" in a else a.get("to")
    if high is None:  # `random_`
        high = _most(dtype) + 1
    _require(isinstance(low, int), isinstance(high, int))
    _require(_least(dtype) <= low < high <= _most(dtype) + 1)
    return Integers(low, high - low)


# --- operations -------------------------------------------------------------------------------------------------------


def _dtype(a: _Arguments, default: torch.dtype | None) -> torch.dtype | None:
    """The dtype that is given: a schema has a number as its default."""
    return a["dtype"] if isinstance(a.get("dtype"), torch.dtype) else default


def _new(of: _DistributionOf, default: torch.dtype | None = None) -> _Replacement:
    """An operation that takes a size."""

    def run(fill: Fill, a: _Arguments) -> torch.Tensor:
        out = a.get("out")
        if out is None:
            out = torch.empty(a["size"], dtype=_dtype(a, default), device=a["device"])
        _require(list(out.shape) == list(a["size"]))
        return filled(fill, out, of(a, out.dtype))

    return run


def _like(of: _DistributionOf) -> _Replacement:
    """An operation that takes a tensor for its shape."""

    def run(fill: Fill, a: _Arguments) -> torch.Tensor:
        options = {name: a[name] for name in ("dtype", "device", "memory_format") if a.get(name) is not None}
        out = a.get("out")
        out = torch.empty_like(a["self"], **options) if out is None else out
        _require(out.shape == a["self"].shape)
        return filled(fill, out, of(a, out.dtype))

    return run


def _in_place(of: _DistributionOf) -> _Replacement:
    """An operation that fills its argument."""
    return lambda fill, a: filled(fill, a["self"], of(a, a["self"].dtype))


def _bernoulli_in_place(fill: Fill, a: _Arguments) -> torch.Tensor:
    out: torch.Tensor = a["self"]
    if isinstance(a["p"], torch.Tensor):
        return out.copy_(_with_probabilities(fill, a["p"].expand(out.shape)))
    return filled(fill, out, _bernoulli(a, out.dtype))


def _bernoulli_of(fill: Fill, a: _Arguments) -> torch.Tensor:
    """`torch.bernoulli`, whose argument holds the probabilities if there is no `p`."""
    if a.get("p") is None:
        drawn = _with_probabilities(fill, a["self"]).to(a["self"].dtype)
    else:
        _require(not isinstance(a["p"], torch.Tensor))
        drawn = filled(fill, torch.empty_like(a["self"]), _bernoulli(a, a["self"].dtype))
    return _into(a.get("out"), drawn)


def _with_probabilities(fill: Fill, p: torch.Tensor) -> torch.Tensor:
    _require(p.dtype in FLOATING)
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    unit = torch.empty(p.shape, dtype=dtype, device=p.device)
    fill(unit, Uniform())
    return unit < p


def _normal_of(fill: Fill, a: _Arguments) -> torch.Tensor:
    """`torch.normal`: with tensors as means or standard deviations, or with a size."""
    mean, std = a["mean"], a["std"]
    tensors = [value for value in (mean, std) if isinstance(value, torch.Tensor)]
    if not tensors:
        return _new(_normal)(fill, a)
    _require(isinstance(std, torch.Tensor) or std >= 0)
    shape, dtype = torch.broadcast_shapes(*(t.shape for t in tensors)), tensors[0].dtype
    _require(dtype in FLOATING, tensors[-1].dtype == dtype)
    out = torch.empty(shape, dtype=dtype, device=tensors[0].device)
    fill(out, Normal())
    return _into(a.get("out"), out.mul_(std).add_(mean))


def _native_dropout(fill: Fill, a: _Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    x, p = a["input"], a["p"]
    _require("out0" not in a, 0 <= p <= 1)
    if a["train"] is False:
        return torch.ops.aten.native_dropout(x, p, False)
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    fill(mask, Bernoulli(1.0 - p))
    if p == 1:
        return torch.zeros_like(x), mask
    return torch.ops.aten.native_dropout_backward(x, mask, 1.0 / (1.0 - p)), mask


def _randperm(fill: Fill, a: _Arguments) -> torch.Tensor:
    out, n = a.get("out"), a["n"]
    bits = torch.empty(n, dtype=torch.int64, device=a.get("device") if out is None else out.device)
    fill(bits, Integers(-(1 << 63), 1 << 64))
    order = bits.argsort()
    return _into(out, order.to(_dtype(a, torch.int64)))


def _into(out: torch.Tensor | None, drawn: torch.Tensor) -> torch.Tensor:
    if out is None:
        return drawn
    _require(out.shape == drawn.shape)
    return out.copy_(drawn)


_REPLACEMENTS: dict[str, _Replacement] = {
    "aten::rand": _new(_unit),
    "aten::rand_like": _like(_unit),
    "aten::uniform": _like(_uniform),
    "aten::uniform_": _in_place(_uniform),
    "aten::randn": _new(_standard_normal),
    "aten::randn_like": _like(_standard_normal),
    "aten::normal": _normal_of,
    "aten::normal_": _in_place(_normal),
    "aten::normal_functional": _like(_normal),
    "aten::exponential": _like(_exponential),
    "aten::exponential_": _in_place(_exponential),
    "aten::bernoulli": _bernoulli_of,
    "aten::bernoulli_": _bernoulli_in_place,
    "aten::native_dropout": _native_dropout,
    "aten::randint": _new(_integers, torch.int64),
    "aten::randint_like": _like(_integers),
    "aten::random": _like(_integers),
    "aten::random_": _in_place(_integers),
    "aten::randperm": _randperm,
}
