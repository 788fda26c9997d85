"""How outputs are inferred: by running the function without data, once."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import math
import types
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
import torch.utils._pytree as torch_tree

from . import _compat
from ._advice import Kind, kind_of, note_inference, values_matter
from ._dataless import keeps_state
from ._dtypes import aval_text, note_missing_width
from ._errors import DataDependentShapeError, OutputError, T2jError, T2jWarning, describe, warn
from ._garbage import collect
from ._indices import LongIndices, are_narrow, expands_index
from ._jax_inside import as_jax_inside, jax_inside
from ._made_up import Examples, Values, enough, values
from ._pytree import Static, merger, plain
from ._randomness import Draws, Watch, WatchReads, generator_states
from ._rng import turns
from ._signature import Leaf, Outputs, fixed_shapes, named_avals, output_leaf

logger = logging.getLogger("t2j_core")


class _NeedsDataError(Exception):
    """Only a run on real tensors tells the outputs."""


class _OnMeta(_compat.DispatchMode):
    """Runs operations on the function's arguments on meta tensors: no data, no work.

    Tensors that do not depend on the arguments (masks, position tables) are made for real, because functions cache
    them; parameters that a function closes over get meta twins, and are never written. PyTorch's own fake tensors
    would know the device as well, but cost seconds to import.
    """

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws
        self.results: list[weakref.ref[torch.Tensor]] = []
        self._operations = 0
        self._largest = 0  # elements of the largest tensor
        self._is_random = False
        self.expands_indices = False
        self._autocast_depth = 0
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: dict[int, Any] = {}  # storages of real tensors of this run, by address

    def _meta(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("meta")
        if not isinstance(value, torch.Tensor) or value.is_meta:
            return value
        if id(value) not in self._twins:
            self._twins[id(value)] = (value, _without_data(value))
        return self._twins[id(value)][1]

    def __enter__(self) -> _OnMeta:
        self._autocast_depth = _compat.autocast_depth()
        super().__enter__()
        return self

    def _is_made(self, tensor: torch.Tensor) -> bool:
        return not tensor.is_meta and tensor.untyped_storage().data_ptr() in self._made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._run(func, args, dict(kwargs or {}))
        self._draws.note(func, args, kwargs or {}, result)
        return result

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if _compat.autocast_depth() > self._autocast_depth:
            raise NotImplementedError("autocast acts by device, and tensors without data have none")
        if func.name().startswith("aten::quantize"):
            raise _NeedsDataError("tensors without data are never quantised")
        tensors = [leaf for leaf in torch_tree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self._operations += 1
        self._largest = max(self._largest, *(t.numel() for t in tensors), 0)
        self._is_random |= torch.Tag.nondeterministic_seeded in func.tags
        self.expands_indices |= expands_index(func, args)
        writes = func._schema.is_mutable
        makes = not writes and not any(r.alias_info for r in func._schema.returns)
        if all(not t.is_meta for t in tensors) and (not writes or all(map(self._is_made, tensors))):
            if kwargs.get("device") == _META:  # `device=x.device`
                kwargs["device"] = _compat.torch_device()
            result = func(*args, **kwargs)
            for leaf in torch_tree.tree_leaves(result):
                if makes and isinstance(leaf, torch.Tensor):
                    self._made[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage()
            return result
        result = _from_zeros(func, tensors, args, kwargs)
        if result is None:
            result = self._on_meta(func, args, kwargs)
        leaves = torch_tree.tree_leaves(result)
        self.results += [weakref.ref(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return result

    def _on_meta(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = torch_tree.tree_map(self._meta, (args, kwargs))
        if any(a.name == "device" for a in func._schema.arguments):
            kwargs["device"] = _META
        kwargs.pop("pin_memory", None)
        return func(*args, **kwargs)

    def is_quick(self) -> bool:
        """Whether a run takes less than about 0.1 ms, and always does the same."""
        return self._operations <= _FEW and self._largest <= _TINY and not self._is_random

    def kept(self) -> bool:
        """Whether the function still refers to a tensor without data after its outputs are gone."""
        self._twins.clear()
        if any(reference() is not None for reference in self.results):
            collect()
        return any(reference() is not None for reference in self.results)


_META = torch.device("meta")
_FEW, _TINY = 12, 1 << 12
_SMALL = 1 << 24


def _most_elements(func: Any, tensors: list[torch.Tensor]) -> int:
    """A bound on the elements of the result, unless an argument is a size."""
    if torch.Tag.pointwise in func.tags:
        with contextlib.suppress(ValueError):  # the operation itself tells better what does not broadcast
            return math.prod(np.broadcast_shapes(*(t.shape for t in tensors)))
    return math.prod(max(t.numel(), 1) for t in tensors)


def _from_zeros(func: Any, tensors: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
    """What a small operation makes of zeros, as meta tensors; None where that does not tell.

    Many meta kernels are written in Python and import torch's compiler, which takes seconds; zeros are cheaper.
    """
    schema = func._schema
    tags = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
    if (
        _compat.dynamo_is_loaded()
        or schema.is_mutable
        or any(r.alias_info for r in schema.returns)
        or any(tag in func.tags for tag in tags)
        or _most_elements(func, tensors) > _SMALL
    ):
        return None

    def zeros(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu").zero_()
        return torch.device("cpu") if isinstance(value, torch.device) else value

    try:
        result = func(*torch_tree.tree_map(zeros, args), **torch_tree.tree_map(zeros, kwargs))
    except Exception:  # zeros need not be valid input: a singular matrix
        return None
    if not all(map(_is_plain, torch_tree.tree_leaves(result))):
        return None
    return torch_tree.tree_map(_without_data, result)


def _is_plain(value: Any) -> bool:
    return type(value) is torch.Tensor and value.layout == torch.strided and not value.is_quantized


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


_FAKE_FROM_BYTES = 1 << 30


def infer_outputs(
    call: Callable[..., Any],
    name: str,
    key: tuple[Any, ...],
    operands: Sequence[Leaf],
    examples: Examples = (),
    *,
    notes_random: bool = False,
) -> Outputs:
    """Run the function without data, once, and read its outputs off; where that fails, run it on data.

    The data are the examples, if there are any, and made-up values.

    If `notes_random`, a function that draws random numbers is run once more, to tell whether it always does.
    Raises `DataDependentShapeError` where a shape depends on values, and the function's own exception where it raises.
    """
    draws = Draws()
    on_meta = _OnMeta(draws)
    modes: list[tuple[Any, str]] = [(on_meta, "meta")]
    if _compat.dynamo_is_loaded() or sum(leaf.nbytes for leaf in operands) >= _FAKE_FROM_BYTES:
        # Some code looks for fake tensors to skip what needs data. Their import takes seconds, so zeros are cheaper
        # unless they are many, or the import is done.
        modes.append((_compat.fake_mode(), str(_compat.torch_device())))
    obstacle = ""
    failure: Kind | None = None
    for mode, device in modes:
        try:
            with _inference(name):
                outputs = _run_in(mode, device, call, key, operands, draws)
            keeps = on_meta.kept()
            if keeps:
                warn(keeps_state(name), T2jWarning)
            is_quick = mode is on_meta and on_meta.is_quick()
            origin = "inferred by a run without data" + obstacle
            is_random = (
                notes_random and draws.any() and _is_random_without_data(mode, device, name, call, key, operands)
            )
            needs = on_meta.expands_indices or outputs.needs_long_indices or (False if mode is on_meta else None)
            return dataclasses.replace(
                outputs,
                is_quick=is_quick,
                needs_long_indices=needs,
                origin=origin,
                is_random=is_random,
                keeps_state=keeps,
            )
        except T2jError:
            raise
        except _NeedsDataError as reason:
            obstacle, failure = f" ({reason})", kind_of(reason)
            break
        except Exception as reason:
            obstacle, failure = f" ({_first_line(reason)})", failure or kind_of(reason)
            logger.info("%s cannot run without data (%s: %s)", name, type(reason).__name__, reason)
    runs = _Runs(call, name, key, operands, notes_random=notes_random)
    outputs = _infer_from_data(runs, examples, failure)
    on = "examples and made-up data" if any(example is not None for example in examples) else "made-up data"
    return dataclasses.replace(outputs, origin=f"inferred by runs on {on}{obstacle}")


def _first_line(error: Exception) -> str:
    try:
        lines = str(error).splitlines()
    except Exception:  # it is the user's
        lines = []
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _run_in(mode: Any, device: str, call: Any, key: tuple[Any, ...], operands: Sequence[Leaf], draws: Draws) -> Outputs:
    with mode if device != "meta" else contextlib.nullcontext():
        tensors = [torch.empty(leaf.shape, dtype=leaf.torch_dtype, device=device) for leaf in operands]
    watch = contextlib.nullcontext() if device == "meta" else Watch(draws)
    with mode, watch, _compat.without_addresses():
        return _run(call, key, tensors)


def _is_random_without_data(
    mode: Any, device: str, name: str, call: Any, key: tuple[Any, ...], operands: Sequence[Leaf]
) -> bool:
    def run(draws: Draws) -> None:
        watched = lambda *args, **kwargs: draws.returned(call(*args, **kwargs))
        _run_in(_OnMeta(draws) if device == "meta" else mode, device, watched, key, operands, draws)

    return _is_random(name, run)


def _is_random(name: str, run: Callable[[Draws], object]) -> bool:
    """Whether a function that drew random numbers does so again: not if it initialised something with them."""
    try:
        with _inference(name):
            draws = Draws.with_private_seed()
            with WatchReads(draws):
                run(draws)
            return draws.any()
    except Exception as reason:  # what ran once need not run twice, nor in a dispatch mode
        logger.info("cannot tell whether %s draws random numbers (%s)", name, _first_line(reason))
        return False


class _Runs:
    """Runs of a function on different values: enough of them to tell whether shapes depend on values."""

    def __init__(
        self, call: Callable[..., Any], name: str, key: tuple[Any, ...], operands: Sequence[Leaf], *, notes_random: bool
    ) -> None:
        self._call, self._name, self._key, self._operands = call, name, key, operands
        self._notes_random = notes_random
        self._drew_on: tuple[Callable[[], Values], str] | None = None  # values of a run that drew random numbers
        self._answers: list[Outputs] = []
        self._failures: list[Exception] = []

    def run(self, examples: Examples, without_data: Kind | None) -> None:
        for device in dict.fromkeys((str(_compat.torch_device()), "cpu")):  # kernels and weights may be of a GPU alone
            for count, make in enumerate(values(self._operands, examples), 1):
                self._run_once(device, make)
                if self._is_settled() or (count == _IN_VAIN and not self._may_work(without_data)):
                    break
            if self._answers or self._is_settled():
                return

    def forget_failures(self) -> None:
        """Their tracebacks refer to frames that refer to this."""
        self._failures.clear()

    def _run_once(self, device: str, make: Callable[[], Values]) -> None:
        try:
            with _inference(self._name):
                before = generator_states()
                self._answers.append(self._run(device, make))
                if not all(map(torch.equal, before, generator_states())):
                    self._drew_on = make, device
        except Exception as error:  # not all values need be valid input
            self._failures.append(error)

    def _run(self, device: str, make: Callable[[], Values], call: Callable[..., Any] | None = None) -> Outputs:
        return _run(call or self._call, self._key, [tensor.to(device) for tensor in make()])

    def _is_random(self) -> bool:
        if self._drew_on is None or not self._notes_random:
            return False
        make, device = self._drew_on

        def again(draws: Draws) -> None:
            watched = lambda *args, **kwargs: draws.returned(self._call(*args, **kwargs))
            with Watch(draws):
                self._run(device, make, watched)

        return _is_random(self._name, again)

    def _is_settled(self) -> bool:
        if self._failures and isinstance(self._failures[-1], T2jError):
            return True
        count = enough(self._operands) if self._answers and not self._is_doubtful() else math.inf
        return len(self._answers) >= count or self._differ()

    def _is_doubtful(self) -> bool:
        """Whether only further values would show elements: `x[x > 1000]`."""
        return any(0 in leaf.shape for leaf in self._answers[0].leaves) and not _are_empty(self._operands)

    def _differ(self) -> bool:
        return any(_content(answer) != _content(self._answers[0]) for answer in self._answers)

    def _may_work(self, without_data: Kind | None) -> bool:
        return bool(self._answers) or values_matter(without_data, self._failures)

    def outputs(self) -> Outputs:
        first, last = self._answers[0], self._answers[-1]
        if last.leaves != first.leaves:
            raise DataDependentShapeError(_data_dependent(self._name, self._key, self._operands, first, last))
        if _content(last) != _content(first):
            raise OutputError(_changing_constant(self._name, self._key, self._operands, first))
        return dataclasses.replace(first, is_doubtful=self._is_doubtful(), is_random=self._is_random())

    def failure(self, without_data: Kind | None) -> Exception | None:
        """The first exception, or that of t2j, with notes; None where a run succeeded."""
        if self._answers:
            return None
        of_t2j = [error for error in self._failures if isinstance(error, T2jError)]
        if of_t2j:
            return of_t2j[0]
        failure, matter = self._failures[0], self._may_work(without_data)
        note_inference(failure, self._name, self._key, self._operands, values_matter=matter)
        note_missing_width(failure)
        return failure


def _are_empty(operands: Sequence[Leaf]) -> bool:
    return all(0 in leaf.shape for leaf in operands)


def _content(outputs: Outputs) -> tuple[Any, ...]:
    return outputs.leaves, outputs.tree, outputs.statics


_IN_VAIN = 4  # runs that fail in the same way, as on real data


def _infer_from_data(runs: _Runs, examples: Examples, without_data: Kind | None) -> Outputs:
    runs.run(examples, without_data)
    failure = runs.failure(without_data)
    try:
        if failure is not None:
            raise failure
        return runs.outputs()
    finally:
        runs.forget_failures()
        del failure  # its traceback holds this frame


def _data_dependent(name: str, key: tuple[Any, ...], operands: Sequence[Leaf], first: Outputs, second: Outputs) -> str:
    return describe(
        f"The output shapes of {name} depend on the values of its inputs ({named_avals(key, operands)}).",
        expected="shapes that follow from the input shapes, which is all JAX knows when it traces",
        got=f"({', '.join(map(str, first.leaves))}) for one input, ({', '.join(map(str, second.leaves))}) for another",
        remedy=fixed_shapes(operands),
    )


def _changing_constant(name: str, key: tuple[Any, ...], operands: Sequence[Leaf], outputs: Outputs) -> str:
    kinds = sorted({static.kind.__name__ for static in outputs.statics if static is not None})
    return describe(
        f"{name} returns a constant that depends on the values of its inputs ({named_avals(key, operands)}).",
        expected="tensors, and constants that are the same for every input of a signature",
        got=f"another {' or '.join(kinds) or 'tree'} for another input",
        remedy="Return values that change from call to call as tensors: `x.sum()` instead of `x.sum().item()`.",
    )


@contextlib.contextmanager
def _inference(name: str) -> Any:
    """Within, the function `name` is tried out: it neither sees nor changes the state of a real call."""

    def refuse(operation: str) -> Exception:
        return jax_inside(name, f"the operation `{operation}`")

    _compat.close_abandoned_forward_level()  # one that another function has left
    found: Exception | None = None
    with (
        turns,
        _compat.default_torch_state(("cpu",)),
        torch.random.fork_rng(devices=_compat.torch_gpus()),
        _compat.without_compilation(),
        _compat.without_log_of_fake_tensors(),
        _compat.refusing_jax(refuse),
        np.errstate(all="ignore"),  # of made-up values
    ):
        try:
            yield
        except Exception as error:
            found = as_jax_inside(name, error)
            if found is None:
                raise
        finally:
            is_left = _compat.close_abandoned_forward_level()
    if found is not None:
        raise found
    if is_left:
        warn(_leaves_level(name), T2jWarning)


def _leaves_level(name: str) -> str:
    return (
        f"{name} enters a level of forward mode (`torch.autograd.forward_ad.enter_dual_level`) and returns without "
        "leaving it. All threads share the one level, so t2j closes it. Use `with forward_ad.dual_level():`."
    )


apart = _inference  # for sister packages, which try out functions too


def _run(call: Callable[..., Any], key: tuple[Any, ...], tensors: list[torch.Tensor]) -> Outputs:
    args, kwargs = merger(key)(tensors)
    versions = [t._version for t in tensors]
    with contextlib.ExitStack() as stack:
        long = stack.enter_context(LongIndices(misread=False)) if are_narrow(t.dtype for t in tensors) else None
        answer = call(*args, **kwargs)
    _check_containers(answer, ())
    items, tree = jax.tree.flatten(plain(answer))
    mutated = tuple(i for i, t in enumerate(tensors) if t._version != versions[i])
    statics = tuple(None if isinstance(item, torch.Tensor) else _static_output(item) for item in items)
    results = [item for item in items if isinstance(item, torch.Tensor)]
    returned = tuple((i, j) for i in mutated for j, r in enumerate(results) if _same_memory(r, tensors[i]))
    leaves = tuple(output_leaf(_sizes(t), t.dtype) for t in results)
    needs = True if long is not None and long.has_met_refused else None
    return Outputs(tree, leaves, statics, mutated, returned, is_declared=False, needs_long_indices=needs)


def _check_containers(item: Any, outer: tuple[int, ...]) -> None:
    """Refuse what JAX cannot flatten: containers that contain themselves, generators, coroutines."""
    if id(item) in outer:
        what, remedy = "a container that contains itself", "Return the tensors in tuples, lists and dicts."
    elif isinstance(item, (Iterator, Awaitable, AsyncIterator)):
        what, remedy = "something that would run after the call", "Return a tuple of the values: `tuple(generator)`."
        if inspect.iscoroutine(item):
            item.close()
    else:
        for part in _parts(item):
            _check_containers(part, (*outer, id(item)))
        return
    text = f"The function returns {what}."
    raise OutputError(describe(text, expected="a finite tree of tensors", got=type(item).__name__, remedy=remedy))


def _parts(item: Any) -> Any:
    if isinstance(item, Mapping):
        return item.values()
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return [getattr(item, field.name, None) for field in dataclasses.fields(item)]
    return item if isinstance(item, (list, tuple)) else ()


def _sizes(tensor: torch.Tensor) -> tuple[int, ...]:
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else "sparse"
        raise OutputError(
            describe(
                f"The function returns a {kind} tensor, which JAX arrays cannot hold.",
                expected="a dense tensor",
                got=f"{tensor.dtype}, {tensor.layout}",
                remedy="Return `tensor.dequantize()`." if tensor.is_quantized else "Return `tensor.to_dense()`.",
            )
        )
    return tuple(tensor.shape)


def _static_output(item: Any) -> Static:
    if isinstance(item, (np.ndarray, np.generic, jax.Array)):
        raise OutputError(
            describe(
                f"The function returns a {type(item).__name__} where a tensor is needed.",
                expected="torch tensors, and constants such as numbers or strings",
                got=f"{type(item).__name__} {aval_text(item.shape, item.dtype)}",
                remedy="Return `torch.as_tensor(value)`.",
            )
        )
    if _holds_tensors(item):
        raise OutputError(
            describe(
                f"The function returns tensors inside a {type(item).__name__}, which is no pytree.",
                expected="tensors in tuples, lists, dicts, dataclasses or registered pytrees",
                got=type(item).__name__,
                remedy="Return one of these, or register the class with `jax.tree_util.register_pytree_node`. "
                "(A cache of a Hugging Face model: call it with `use_cache=False`.)",
            )
        )
    return Static.of(item)


def _holds_tensors(item: Any) -> bool:
    """Whether there are tensors in an object, or in the objects it holds."""
    seen: dict[int, Any] = {}
    rest = [item]
    while rest and len(seen) < _MOST_PARTS:
        part = rest.pop()
        if isinstance(part, torch.Tensor):
            return True
        if id(part) in seen or isinstance(part, (type, types.ModuleType, torch.nn.Module)):
            continue
        seen[id(part)] = part
        if isinstance(part, (set, frozenset, list, tuple)):
            rest.extend(part)
        else:
            rest.extend((part if isinstance(part, dict) else getattr(part, "__dict__", {})).values())
    return False


_MOST_PARTS = 1000


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = a is b or (a._is_view() and a._base is b)
    return same and a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
