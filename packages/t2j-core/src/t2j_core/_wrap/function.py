"""`TorchFunction`: the wrapper that users hold, and the routes of its calls."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, overload

import jax
import numpy as np
import torch

from .. import _compat
from .._base.bounded import remember as _remember
from .._base.dtypes import canonical, dtype_t2j
from .._base.errors import ArgumentError, T2jError, T2jWarning, TensorEscapeError, describe, warn
from .._base.frames import hide_own_frames
from .._base.text import utf8
from .._base.turns import turns
from .._infer.indices import are_narrow, with_long_indices
from .._infer.infer import infer_outputs, works_on
from .._infer.kept_tensors import refusing_kept
from .._infer.notes import warn_of_no_arrays
from .._infer.rng import seeded
from .._infer.unkeyed import draws_without_key, warning_of_draws
from .._lowering.primitive import outputs_of, torch_call
from .._run.escapes import hold
from .._run.originals import original_of, raises_originals
from .._run.orphans import Signatures, let_go
from .._run.registry import register_name
from .._run.torch_fn import TorchFn
from .._signature.call_tree import CallTree, PyTreeDef, split
from .._signature.declared import declared_outputs
from .._signature.signature import Leaf, Outputs, Signature, leaf_of
from .arguments import ExampleValues, arrays_of, as_data, check_key_is_first, key_data, leaves_of
from .changing_constants import Watch
from .constant_outputs import Mark, _without_marks
from .explain import explained, heading, shown_options
from .in_place import handed_over
from .misplaced import as_users_error
from .options import Options
from .python_signature import signature_of

if TYPE_CHECKING:
    from typing_extensions import ParamSpec  # with a default, which `typing` has from Python 3.13

    P = ParamSpec("P", default=...)
else:
    from typing import ParamSpec

    P = ParamSpec("P")


class TorchFunction(Generic[P]):
    """A PyTorch function that JAX can call; made by `torch2jax`."""

    def __init__(
        self, fn: Callable[P, Any], options: Options, examples: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    ) -> None:
        if not callable(fn):
            raise ArgumentError(
                describe("`fn` must be callable.", got=type(fn).__name__, remedy="Pass a function or an `nn.Module`.")
            )
        if isinstance(fn, type) and issubclass(fn, torch.nn.Module):
            raise ArgumentError(
                describe(
                    f"`fn` is the class {fn.__name__}, whose call makes a module.",
                    expected="a function, or a module",
                    got="a class",
                    remedy=f"Make a module first: `torch2jax({fn.__name__}(...))`.",
                )
            )
        self.fn: Callable[..., Any] = fn
        self.options = options
        self._example_tree: Any = None
        self._example_dtypes: dict[int, torch.dtype] = {}
        self._examples = ExampleValues()
        self._describe()
        self._start()
        failure: Exception | None = None
        try:
            if examples is not None:
                self._check_examples(*examples)
        except Exception as error:
            failure = error
        if failure is not None:  # raised out here, as in `__call__`
            hide_own_frames(failure)
            try:
                raise failure
            finally:
                del failure

    def _describe(self) -> None:
        """Take over what `fn` says of itself."""
        fn, options = self.fn, self.options
        self.__name__: str = utf8(str(options.name or getattr(fn, "__name__", type(fn).__name__)))
        self.__doc__: str | None = getattr(fn, "__doc__", None)
        self.__wrapped__: Callable[..., Any] = fn
        self.__signature__: inspect.Signature = signature_of(
            fn, *["key"] * options.rng, without=["out"] * (options.outputs == "out")
        )

    def _start(self) -> None:
        """Begin with empty caches, and be the function of that name."""
        self._fns = Signatures()
        self._entries: dict[Any, Any] = {}  # compiled forms for eager calls, by everything but the data
        self._array_entries: dict[Any, Any] = {}  # the same where all leaves are JAX arrays, by the tree
        self._array_type: type | None = None
        self._flat = jax.jit(self._call_arrays)
        self._constants_seen = Watch()
        self._has_constant_outputs = False
        self._told: set[str] = set()  # the warnings that were given, for the function and its variants
        if self.options.name is not None:
            register_name(self.options.name, self._build)

    def _variant(self, **changes: Any) -> Any:
        """The same function with some attributes changed, and caches of its own."""
        other = object.__new__(type(self))
        vars(other).update(vars(self), _fns=Signatures(), _entries={}, _array_entries={}, **changes)
        other._flat = jax.jit(other._call_arrays)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along; all else follows from it."""
        return {name: vars(self)[name] for name in _KEPT_IN_COPIES}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._describe()
        self._start()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A method, where `fn` in a class would be one: `@torch2jax` over a method. `self` is a constant then."""
        bind = getattr(self.fn, "__get__", None)
        if instance is None or bind is None:
            return self
        bound = bind(instance, owner)
        return types.MethodType(self, instance) if getattr(bound, "__func__", None) is self.fn else self

    def __repr__(self) -> str:
        maker = getattr(self.fn, "t2j_made_by", "torch2jax")
        return f"{maker}({', '.join(filter(None, (self.__name__, shown_options(*self._option_groups()))))})"

    def _option_groups(self) -> tuple[Any, ...]:
        """The dataclasses of options that `repr` shows."""
        return (self.options,)

    # --- what was decided ------------------------------------------------------------------------------------------

    def explain(self) -> str:
        """What was decided for each signature that was used, and why: a text to print.

        How the outputs became known, which arguments are lent, copied or written in place, and which results are
        copied or written in place.

        >>> from t2j_core import torch2jax
        >>> import jax.numpy as jnp, torch
        >>> f = torch2jax(torch.sin)
        >>> _ = f(jnp.ones(3))
        >>> print(f.explain())
        sin(f32[3]) -> (f32[3])
          outputs: inferred by a run without data
          args[0]: lent, not copied
          output: copied (below 1048576 bytes)
        """
        return "\n".join(self._explained_calls()) or f"{self.__name__} was not called yet."

    def _explained_calls(self) -> list[str]:
        """A text for each signature."""
        return ["\n  ".join([heading(fn), *self._explained(fn)]) for fn in list(self._fns.values())]

    def _explained(self, fn: TorchFn) -> list[str]:
        """What is said of one signature."""
        return explained(fn)

    # --- calling ---------------------------------------------------------------------------------------------------

    # The first form is what editors show: the parameters of `fn`. Its annotations say `torch.Tensor` where callers
    # pass arrays, which no type can translate, so the second form accepts every call: no false error, and none found.
    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    @overload
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...
    @raises_originals
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        failure: BaseException | None = None
        try:
            if not kwargs and set(map(type, args)) == {self._array_type}:
                outputs = outputs_of(self._flat, args)
            else:
                outputs = self._call_any(args, kwargs)
        except Exception as error:
            is_of_inference = isinstance(error, _CarrierError)
            failure = as_users_error(self.__name__, error, args, kwargs) or _behind(error)
        if failure is not None and is_of_inference and self._learns_from(args, kwargs, failure):
            del failure
            return self(*args, **kwargs)
        if failure is not None:  # raised out here, its own `__cause__` and `__context__` stay
            if isinstance(failure, TensorEscapeError):
                hold((args, kwargs))
            hide_own_frames(failure)
            try:
                raise failure
            finally:
                del failure  # the traceback refers to this frame, and this frame to the exception
        return _without_marks(outputs) if self._has_constant_outputs else outputs

    def _call_any(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        if self._array_type is None:
            self._array_type = next((type(leaf) for leaf in leaves if _compat.is_concrete_array(leaf)), None)
        if leaves and set(map(type, leaves)) == {self._array_type}:
            return outputs_of(self._entry_of_arrays(tree, len(leaves)), leaves)
        _compat.check_jax_is_allowed(self.__name__)
        data, call_tree = split(args, kwargs)
        is_traced = any(isinstance(leaf, _compat.Tracer) for leaf in data)
        arrays = arrays_of(data, self.__name__, call_tree, is_traced=is_traced)
        dtypes = self._torch_dtypes(data, call_tree)
        return (
            self._bind(arrays, call_tree, dtypes)
            if is_traced
            else outputs_of(self._entry(call_tree, dtypes, arrays), arrays)
        )

    def _learns_from(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], failure: BaseException) -> bool:
        """Infer the outputs of a call on its own values, where made-up ones have failed."""
        if isinstance(failure, T2jError):
            return False
        data, call_tree = split(args, kwargs)
        if self.options.output_shapes is not None or any(isinstance(leaf, _compat.Tracer) for leaf in data):
            return False
        arrays, dtypes = arrays_of(data, self.__name__, call_tree, is_traced=False), self._torch_dtypes(data, call_tree)
        if self.options.rng:
            arrays[0] = key_data(arrays[0])
        operands = leaves_of(arrays, dtypes, self.__name__, call_tree)
        values = ExampleValues(arrays, operands)
        if self._full(call_tree, operands) in self._fns or not works_on(
            self._inferred(), self.__name__, call_tree, operands, values.matching(operands)
        ):
            return False
        self._torch_fn(call_tree, operands, values)
        return True

    def _entry(self, call_tree: CallTree, dtypes: Any, arrays: Sequence[Any]) -> Any:
        """The compiled form for a call with constants, or with arrays of other libraries."""
        structure, statics = call_tree
        if arrays and len(arrays) == len(statics) and dtypes == self._torch_dtypes(arrays, call_tree):
            return self._entry_of_arrays(structure, len(arrays))  # as if they had been JAX arrays
        entry = self._entries.get((call_tree, dtypes))
        if entry is None:
            entry = jax.jit(functools.partial(self._bind_marked, call_tree, dtypes))
            _remember(self._entries, (call_tree, dtypes), entry)
        return entry

    def _entry_of_arrays(self, structure: PyTreeDef, count: int) -> Any:
        """The compiled form for a call with JAX arrays alone."""
        entry = self._array_entries.get(structure)
        if entry is None:
            call_tree = CallTree(structure, (None,) * count)
            entry = self._flat if call_tree.is_positional else jax.jit(functools.partial(self._call_tree, call_tree))
            _remember(self._array_entries, structure, entry)
        return entry

    def _call_arrays(self, *arrays: Any) -> Any:
        return self._call_tree(CallTree.positional(len(arrays)), *arrays)

    def _call_tree(self, call_tree: CallTree, *arrays: Any) -> Any:
        return self._bind_marked(call_tree, self._torch_dtypes(arrays, call_tree), *arrays)

    def _bind_marked(self, call_tree: CallTree, dtypes: Any, *arrays: Any) -> Any:
        try:
            return self._bind(list(arrays), call_tree, dtypes, marked=True)
        except Exception as error:
            raise _CarrierError(error) from None

    def _bind(self, arrays: list[Any], call_tree: CallTree, dtypes: Any, *, marked: bool = False) -> Any:
        if self.options.rng:
            check_key_is_first(self.__name__, call_tree)
            arrays[0] = key_data(arrays[0])
        outputs, results = self._bind_flat(arrays, call_tree, dtypes)
        if marked and any(static is not None for static in outputs.statics):
            self._has_constant_outputs = True
            rest = iter(results)
            return jax.tree.unflatten(outputs.tree, [next(rest) if s is None else Mark(s) for s in outputs.statics])
        return outputs.unflatten(results)

    def _bind_flat(self, arrays: Sequence[Any], call_tree: CallTree, dtypes: Any) -> tuple[Outputs, Sequence[Any]]:
        fn = self._torch_fn(call_tree, leaves_of(arrays, dtypes, self.__name__, call_tree))
        return fn.signature.outputs, torch_call(*arrays, fn=fn)

    # --- signatures ------------------------------------------------------------------------------------------------

    def _torch_fn(
        self, call_tree: CallTree, operands: tuple[Leaf, ...], values: ExampleValues | None = None
    ) -> TorchFn:
        full = self._full(call_tree, operands)
        fn: TorchFn | None = self._fns.get(full)
        if fn is not None:
            return fn
        let_go()
        with turns if self.options.output_shapes is None else contextlib.nullcontext():  # threads infer once together
            fn = self._fns.get(full)
            if fn is None:
                fn = _remember(self._fns, full, self._build(self._signature(call_tree, operands, values)))
                self._constants_seen.note(self.__name__, call_tree, operands)
            return fn

    def _full(self, call_tree: CallTree, operands: tuple[Leaf, ...]) -> Any:
        return call_tree, operands, canonical(np.int64)  # what 64-bit outputs become depends on x64

    def _check_arguments(self, call_tree: CallTree, operands: Sequence[Leaf]) -> None:
        """Let `fn` refuse arguments by their shapes, once for each signature. `module2jax` checks variables so."""
        check = getattr(self.fn, "t2j_check_arguments", None)
        if check is not None:
            args, kwargs = call_tree.merger()(operands)
            check(*args[self.options.rng :], **kwargs)

    def _inferred(self) -> Callable[..., Any]:
        """What inference runs."""
        extra = {"out": None} if self.options.outputs == "out" else {}
        return functools.partial(self._callable(), **extra)

    def _signature(
        self, call_tree: CallTree, operands: tuple[Leaf, ...], values: ExampleValues | None = None
    ) -> Signature:
        self._check_arguments(call_tree, operands)
        if self.options.output_shapes is not None:
            outputs = declared_outputs(self.options.output_shapes, operands)
        else:
            silent = self.options.rng or self.options.has_side_effect or "random" in self._told
            examples = (values or self._examples).matching(operands)
            outputs = infer_outputs(
                self._inferred(), self.__name__, call_tree, operands, examples, notes_random=not silent
            )
            if outputs.is_random:
                warn(draws_without_key(self.__name__), T2jWarning)
                self._told.add("random")
        if not operands:
            warn_of_no_arrays(self.__name__, call_tree, outputs)
        return Signature(self.__name__, call_tree, operands, outputs)

    def _callable(self) -> Callable[..., Any]:
        return seeded(self.fn) if self.options.rng else self.fn

    def _build(self, signature: Signature) -> TorchFn:
        passes, aliases = handed_over(signature, self.options)
        call, needs_long = self._callable(), signature.outputs.needs_long_indices
        if needs_long is None:
            needs_long = are_narrow(leaf.torch_dtype for leaf in signature.operands)
        if signature.outputs.keeps_state:
            self._told.add("keeps state")
        if signature.outputs.is_declared and not (self.options.rng or self.options.has_side_effect):
            call = warning_of_draws(call, self.__name__, self._told)
        if "keeps state" in self._told:  # that of one signature may be used by another
            call = refusing_kept(call, self.__name__)
        options = self.options.for_calls()
        if signature.outputs.is_doubtful:
            options = replace(options, has_side_effect=True)
        call = with_long_indices(call) if needs_long else call
        return TorchFn(call, signature, options, passes=passes, aliases=aliases, told=self._told)

    # --- examples --------------------------------------------------------------------------------------------------

    def _check_examples(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        data, call_tree = split(jax.tree.map(as_data, args), jax.tree.map(as_data, kwargs))
        self._example_tree = call_tree.structure
        wanted = [leaf.dtype if isinstance(leaf, torch.Tensor) else None for leaf in data]
        self._example_dtypes = {
            index: dtype
            for index, dtype in enumerate(wanted)
            if dtype is not None and canonical(dtype_t2j(dtype)) != dtype_t2j(dtype)
        }
        dtypes = self._torch_dtypes(data, call_tree)
        operands = []
        for index, leaf in enumerate(data):
            if self.options.rng and index == 0:
                leaf = jax.eval_shape(key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
                data[0] = leaf
            stored = dtype_t2j(leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf.dtype
            operands.append(leaf_of(leaf.shape, canonical(stored), dict(dtypes).get(index)))
        self._examples = ExampleValues(data, operands)
        self._check_signature(call_tree, tuple(operands))
        self._examples.forget_large()

    def _check_signature(self, call_tree: CallTree, operands: tuple[Leaf, ...]) -> None:
        self._torch_fn(call_tree, operands)

    def _torch_dtypes(self, data: Sequence[Any], call_tree: CallTree) -> tuple[tuple[int, torch.dtype], ...]:
        """Torch dtypes that differ from what JAX stores: told by the examples, or by tensors among the arguments."""
        if self._example_tree is not None and call_tree.structure != self._example_tree:
            raise ArgumentError(
                describe(
                    f"{self.__name__} was called with another tree of arguments than its examples.",
                    expected=f"{self._example_tree}",
                    got=f"{call_tree.structure}",
                    remedy="Call it as in the examples, or wrap it without examples to call it in any way.",
                )
            )
        found = dict(self._example_dtypes)
        for index, leaf in enumerate(data):
            if isinstance(leaf, torch.Tensor) and canonical(dtype_t2j(leaf.dtype)) != dtype_t2j(leaf.dtype):
                found[index] = leaf.dtype
            elif index in found and canonical(dtype_t2j(found[index])) != canonical(leaf.dtype):
                del found[index]
        return tuple(found.items())


def _refuse_after_fork(self: TorchFunction[...], /, *_args: Any, **_kwargs: Any) -> Any:
    raise T2jError(
        describe(
            f"{self.__name__} was called in a process that was forked from one which had used JAX.",
            expected="a process of its own: the threads of XLA and torch do not survive a fork",
            remedy="Start workers with the 'spawn' method: `multiprocessing.get_context('spawn')`.",
        )
    )


_compat.after_fork(functools.partial(setattr, TorchFunction, "__call__", _refuse_after_fork))

_KEPT_IN_COPIES = ("fn", "options", "_example_tree", "_example_dtypes", "_examples")


class _CarrierError(Exception):
    """Takes an exception of inference through `jax.jit`, which would add to its notes and its traceback."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _behind(error: Exception) -> BaseException:
    """The exception that the user is to see."""
    if isinstance(error, _CarrierError):
        return error.error
    original = original_of(error) if isinstance(error, _compat.XLA_ERRORS) else None
    return error if original is None else original
