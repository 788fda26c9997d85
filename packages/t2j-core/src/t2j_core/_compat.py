"""What differs between versions of JAX and torch. Features are detected, versions are only held against the floor.

`jax.core`, `jax.interpreters` and `jax.extend` are outside JAX's compatibility promise: every use of them is here.
To drop support for a version, delete the branch that its comment names.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.extend.core
import numpy as np
import torch
import torch.utils._pytree as torch_tree
from jax.core import ShapedArray as ShapedArray
from jax.core import Tracer as Tracer
from jax.extend.core import Primitive as Primitive
from jax.interpreters import ad as ad
from jax.interpreters import batching as batching
from jax.interpreters import mlir as mlir
from jax.interpreters import partial_eval
from jax.sharding import AxisType
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.autograd import profiler as torch_profiler
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

JAX_FLOOR = (0, 6, 2)
TORCH_FLOOR = (2, 6, 0)


def _check_floor(name: str, version: str, floor: tuple[int, int, int]) -> None:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < floor:
        wanted = ".".join(map(str, floor))
        raise ImportError(
            f"t2j-core needs {name} {wanted} or newer.\n  Got: {name} {version}\n"
            f"Run `pip install -U '{name}>={wanted}'`."
        )


_check_floor("jax", jax.__version__, JAX_FLOOR)
_check_floor("torch", torch.__version__, TORCH_FLOOR)

# jax before 0.7 has no caches that hold parameters of primitives, so nothing needs to be told to hold them weakly.
try:
    from jax._src.util import weakref_cache_key_types as _weak_key_types
except ImportError:
    _weak_key_types = set()


try:
    from jax._src import effects as _effects

    class _SideEffect(_effects.Effect):
        def __str__(self) -> str:
            return "TorchCall"

    for _allowed in ("lowerable", "control_flow_allowed", "custom_derivatives_allowed", "remat_allowed"):
        getattr(_effects, f"{_allowed}_effects").add_type(_SideEffect)
    side_effects: frozenset[Any] = frozenset({_SideEffect()})
except (ImportError, AttributeError):  # then XLA still runs every call that reaches it
    side_effects = frozenset()


def jax_has_run() -> bool:
    """Whether this process has started JAX's devices, and with them threads that do not survive a fork."""
    try:
        from jax._src.xla_bridge import backends_are_initialized
    except ImportError:
        return True
    return bool(backends_are_initialized())


def after_fork(callback: Callable[[], object]) -> None:
    """Have `callback` called in every process that is forked from this one after it has used JAX."""
    if hasattr(os, "register_at_fork"):  # Windows cannot fork
        os.register_at_fork(after_in_child=lambda: callback() if jax_has_run() else None)


def hold_weakly(cls: type) -> None:
    """Let JAX's caches hold instances of `cls` by weak reference, so that a dropped function is freed."""
    _weak_key_types.add(cls)


# What an executable raises: JAX's fast path turns the error into a plain ValueError (jax 0.10).
XLA_ERRORS: tuple[type[Exception], ...] = (jax.errors.JaxRuntimeError, ValueError)


def forget_eager_primitives() -> None:
    """Empty JAX's cache of programs for primitives that are called eagerly, control flow among them."""
    try:
        from jax._src.dispatch import xla_primitive_callable
    except ImportError:
        return
    for cache in (xla_primitive_callable, _cache_of_loops()):
        clear = getattr(cache, "cache_clear", None)
        if clear is not None:
            clear()


@functools.cache
def _cache_of_loops() -> Any | None:
    """The cache in which jax 0.6 keeps the last 2,048 bodies of `scan` and `while_loop`, with all that they own.

    It holds its keys weakly, and its values refer to them there. Since jax 0.7 `close_jaxpr` returns a copy.
    """
    try:
        from jax._src.interpreters.partial_eval import close_jaxpr
    except ImportError:
        return None
    jaxpr = jax.make_jaxpr(lambda: ())().jaxpr
    return close_jaxpr if close_jaxpr(jaxpr).jaxpr is jaxpr else None


def keeps_loops() -> bool:
    """Whether this JAX keeps a loop that was traced, and what it calls, after the last program with it is gone."""
    return _cache_of_loops() is not None


try:
    from jax._src import source_info_util as _source_info
    from jax._src import traceback_util as _traceback_util
except ImportError:  # then tracebacks and the locations of operations show the frames of t2j too
    _source_info = _traceback_util = None  # type: ignore[assignment]


def hide_frames(module_file: str) -> None:
    """Count the code of a package, which has that module, as internal: in tracebacks, and in locations in programs."""
    directory = os.path.dirname(module_file) + os.sep
    for module in (_source_info, _traceback_util):
        if hasattr(module, "register_exclusion"):
            module.register_exclusion(directory)


hide_frames(__file__)


def register_dce(primitive: Any, replace: Callable[[Sequence[bool], Any], Any]) -> None:
    """Let `replace(used, fn)` choose a cheaper function where the last results of a call are not used."""

    def rule(used: Sequence[bool], *rest: Any) -> tuple[list[bool], Any]:
        eqn = rest[-1]  # jax 0.12 says which inputs are live before it
        if not any(used) and not eqn.effects:
            return [False] * len(eqn.invars), None
        smaller = replace(used, eqn.params["fn"])
        if smaller is not None:
            count = len(smaller.signature.outputs.leaves)
            eqn = eqn.replace(params={**eqn.params, "fn": smaller}, outvars=eqn.outvars[:count])
        return [True] * len(eqn.invars), eqn

    partial_eval.dce_rules[primitive] = rule


def register_jet(primitive: Any, rule: Callable[..., Any]) -> None:
    """Let `rule` tell what `jax.experimental.jet` makes of a primitive; by itself it raises a bare `KeyError`."""
    try:
        from jax.experimental import jet
    except ImportError:
        return
    jet.jet_rules[primitive] = rule


class _Named:
    """What checkify reads of a primitive to describe a NaN."""

    multiple_results = True

    def __init__(self, name: str) -> None:
        self.name = name


def register_checkify(primitive: Any, describe: Callable[[Any], tuple[str, int]]) -> None:
    """Let `jax.experimental.checkify` find NaN in results. `describe(fn)` is the name of a call, and how many count.

    Without the rule it takes a primitive for one that makes none.
    """
    try:
        from jax._src.checkify import check_nans, error_checks
    except ImportError:
        return
    # Before the operands of a call: the error so far and the enabled kinds; jax 0.12 has a context in front of them.
    check: Any = check_nans
    head = len(inspect.signature(check).parameters) - 2

    def rule(*given: Any, fn: Any) -> tuple[Any, Sequence[Any]]:
        results = primitive.bind(*given[head:], fn=fn)
        name, count = describe(fn)
        return check(_Named(name), *given[:head], results[:count]), results

    error_checks[primitive] = rule


_TRANSPOSING = {
    "gmres": "jax.scipy.sparse.linalg.gmres",
    "bicgstab": "jax.scipy.sparse.linalg.bicgstab",
    "cg": "jax.scipy.sparse.linalg.cg",
    "custom_root": "jax.lax.custom_root",
    "custom_linear_solve": "jax.lax.custom_linear_solve",
    "linear_transpose": "jax.linear_transpose",
    "transposed_fun": "jax.linear_transpose",
    "value_and_grad_f": "jax.grad",
    "vjp": "jax.vjp",
}


def transposing_call() -> str:
    """Which function of JAX, of those this thread is inside of, transposes: only its frames tell."""
    found = _public_name(_TRANSPOSING)
    return f"`{found}`" if found else "A transposition in JAX"


_REDUCING = {
    "_reduce_lower": "jax.lax.reduce",
    "_generic_reduce_window_lower": "jax.lax.reduce_window",
    "_scatter_lower": "x.at[...].apply",
    "_select_and_scatter_lower": "select_and_scatter",
}


def reducing_call() -> str | None:
    """Whose function this thread is lowering, of those which XLA applies to single numbers; None if no such one's.

    A function of its own that a reducer calls is lowered apart from the reducer: only the frames tell.
    """
    return _public_name(_REDUCING)


def _public_name(known: dict[str, str]) -> str | None:
    """The public name of the first known function of JAX that this thread is inside of."""
    names, frame = set(), sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__", "")).startswith("jax."):
            names.add(frame.f_code.co_name)
    return next((public for name, public in known.items() if name in names), None)


def is_exporting(ctx: Any) -> bool:
    """Whether a lowering is made for `jax.export`."""
    return bool(ctx.module_context.lowering_parameters.for_export)


def devices_of(ctx: Any) -> int:
    """How many devices the program that is lowered runs on."""
    context = ctx.module_context.axis_context
    mesh = getattr(context, "mesh", None)  # under `jax.shard_map`
    whole = 1 if mesh is None else mesh.size
    return int(getattr(context, "num_devices", None) or whole)


def is_partly_manual(ctx: Any) -> bool:
    """Whether a lowering is inside a `jax.shard_map` over some of the mesh axes, with the others left to XLA."""
    context = ctx.module_context.axis_context
    mesh, manual = getattr(context, "mesh", None), getattr(context, "manual_axes", ())
    return mesh is not None and set(manual) != set(mesh.axis_names)


def whole_mesh(ctx: Any) -> Any | None:
    """A mesh of all devices of the program that is lowered; None if there is one, or each has a program of its own."""
    count = int(getattr(ctx.module_context.axis_context, "num_devices", None) or 1)
    if count == 1:
        return None
    set_by_user = jax.sharding.get_abstract_mesh()  # which `jax.shard_map` insists on
    return jax.sharding.AbstractMesh((count,), ("device",)) if set_by_user.empty else set_by_user


def keep_alive(ctx: Any, value: object) -> None:
    """Let the lowered program own `value` until it is compiled."""
    ctx.module_context.add_keepalive(value)


def register_lowering(primitive: Any, rule: Any) -> None:
    """Register how calls are lowered, for all platforms, and one by one, as jax before 0.7 always does.

    Later versions lower equal calls once. But each is to see which call its ticket comes from, and whether it is in a
    reducer.

    Rules for single platforms fail where calls are lowered one by one for several: `lower_per_platform` in
    jax/_src/interpreters/mlir.py adds a tuple to a list then.
    """
    has_cache = "cacheable" in inspect.signature(mlir.register_lowering).parameters
    options: Any = {"cacheable": False} if has_cache else {}
    mlir.register_lowering(primitive, rule, **options)


def platforms_of(ctx: Any) -> Sequence[str]:
    """The platforms that are being lowered for."""
    platforms: Sequence[str] = ctx.platforms or ctx.module_context.platforms
    return platforms


def paired(ctx: Any, operand: Any, target: str) -> dict[str, Any]:
    """Attributes that a call being lowered shares with the one that `operand` comes from, if that is one of `target`.

    The number of a pair is its own in this module, and the same wherever the module is lowered again. There are no such
    attributes where the operand comes from another block: what a loop or a branch hands over belongs to no one call.
    """
    ir = mlir.ir
    maker, surrounding = operand.owner, ir.InsertionPoint.current.block.owner
    # Every region of JAX's has one block. (jax 0.6: an operation does not tell its block.)
    if isinstance(maker, ir.Block) or maker.operation.parent.operation != surrounding.operation:
        return {}
    attributes = maker.operation.attributes
    if "call_target_name" not in attributes or ir.StringAttr(attributes["call_target_name"]).value != target:
        return {}
    items: Any = ir.DictAttr(attributes["mhlo.backend_config"])
    config = {item.name: item.attr for item in items}
    if "pair" not in config:
        number = len(ctx.module_context.keepalives)
        config["pair"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), number)
        attributes["mhlo.backend_config"] = ir.DictAttr.get(config)
    return {"pair": np.int64(ir.IntegerAttr(config["pair"]).value)}


def named(ctx: Any, name: str) -> contextlib.AbstractContextManager[Any]:
    """Within, what is lowered goes by `name`: in the compiled program, and so in profiles."""
    text = "/".join(filter(None, (str(ctx.name_stack), "torch_call", name)))
    return mlir.ir.Location.name(utf8(text), childLoc=mlir.ir.Location.current)


def utf8(text: str) -> str:
    """A text that C++ accepts: lone surrogates, which UTF-8 lacks, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def varying_axes(aval: Any) -> frozenset[str]:
    """The manual mesh axes (of `jax.shard_map`) that a value varies over."""
    manual = getattr(aval, "mat", None)  # jax 0.10 and newer
    return frozenset(manual.varying if manual is not None else getattr(aval, "vma", ()))


def vary_alike(operands: Sequence[Any]) -> list[Any]:
    """Cast every operand to vary over the union of the operands' manual axes.

    Differentiating that cast inserts the one `psum` which the gradient of a replicated operand needs.
    """
    axes = [varying_axes(jax.typeof(x)) for x in operands]
    union = frozenset().union(*axes)
    return [
        _cast_to_varying(x, tuple(sorted(union - own))) if union - own else x
        for x, own in zip(operands, axes, strict=True)
    ]


def _cast_to_varying(x: Any, axes: tuple[str, ...]) -> Any:
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axes, to="varying")
    return jax.lax.pvary(x, axes)  # type: ignore[attr-defined]  # jax before 0.8


def result_aval(shape: tuple[int, ...], dtype: Any, operands: Sequence[Any]) -> Any:
    """The abstract value of a result: replicated over the mesh, varying over the manual axes of the operands."""
    template = max(operands, key=lambda aval: len(varying_axes(aval)), default=None)
    if template is None:
        return ShapedArray(shape, dtype)
    sharding = ShapedArray(shape, dtype).sharding
    if template.sharding.mesh is not None:
        spec = jax.sharding.PartitionSpec(*(None for _ in shape))
        sharding = jax.sharding.NamedSharding(template.sharding.mesh, spec)
    return template.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding)


def explicit_spec(aval: Any) -> Any | None:
    """The partition spec in the type of `aval` if it shards a dimension over an Explicit mesh axis, else None."""
    spec = getattr(getattr(aval, "sharding", None), "spec", None)
    return spec if spec is not None and any(part is not None for part in spec) else None


if hasattr(jax, "reshard"):
    _reshard: Any = jax.reshard
elif hasattr(jax.sharding, "reshard"):  # jax 0.7
    _reshard = jax.sharding.reshard
else:
    _reshard = importlib.import_module("jax.experimental.shard").reshard


def reshard(x: Any, sharding: jax.sharding.NamedSharding) -> Any:
    """Move an array with Explicit axes to another sharding."""
    return _reshard(x, sharding)


def manual_axes(mesh: Any, axes: Iterable[str]) -> frozenset[str]:
    """The `axis_names` for a `jax.shard_map` that splits over `axes`.

    Auto axes are always among them: the partitioner has nothing to decide about a torch call. The older partitioner
    cannot leave any axis out, nor can jax before 0.8 where the call is batched over one.
    """
    wanted = frozenset(axes)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    every = not (hasattr(jax, "reshard") and getattr(jax.config, "jax_use_shardy_partitioner", True))
    auto = {axis for axis, kind in kinds.items() if kind == AxisType.Auto or (every and kind == AxisType.Explicit)}
    return wanted | auto if wanted else wanted


_core: Any = importlib.import_module("jax._src.core")
_AxisEnv: Any = getattr(_core, "AxisEnv", None)
_HIDES_AXES = hasattr(_AxisEnv, "add_explicit_mesh_axis_names") and not hasattr(
    _AxisEnv, "remove_explicit_mesh_axis_names"
)  # jax 0.8


@contextlib.contextmanager
def batched_mesh_axes() -> Iterator[None]:
    """Within a batching rule, allow `jax.shard_map` over the Explicit axes that the batch is split over."""
    if not _HIDES_AXES:
        yield
        return
    env = _core.get_axis_env()
    _core.trace_ctx.set_axis_env(_AxisEnv(env.axis_sizes, env.spmd_axis_names, frozenset()))
    try:
        yield
    finally:
        _core.trace_ctx.set_axis_env(env)


def is_concrete_array(x: object) -> bool:
    """Whether `x` is a JAX array with values, not a tracer."""
    return isinstance(x, jax.Array) and not isinstance(x, Tracer)


class _Refuse(jax.core.Trace if hasattr(jax.core, "Trace") else object):  # type: ignore[misc]
    """A JAX trace under which every operation raises."""

    def __init__(self, error: Callable[[str], Exception]) -> None:
        super().__init__()
        self._error = error

    def process_primitive(self, primitive: Any, *_: Any) -> Any:
        raise self._error(str(primitive))

    def is_valid(self) -> bool:
        return True

    def stage_value(self, *_: Any) -> Any:
        raise self._error("a jitted function")


@contextlib.contextmanager
def refusing_jax(error: Callable[[str], Exception]) -> Iterator[None]:
    """Raise `error(operation)` when JAX computes something within, on this thread."""
    enter: Any = getattr(jax.extend.core, "set_current_trace", None)
    if enter is None:  # jax before 0.9
        enter = getattr(_core, "set_current_trace", contextlib.nullcontext)
    before = getattr(_refusal, "error", None)
    _refusal.error = error
    try:
        with enter(_Refuse(error)):
            yield
    finally:
        _refusal.error = before


_refusal = threading.local()


def check_jax_is_allowed(operation: str) -> None:
    """Raise what `refusing_jax` was told to, if this thread is inside of it."""
    error = getattr(_refusal, "error", None)
    if error is not None:
        raise error(operation)


class _OnHost:
    """A CPU tensor for `jax.dlpack`, as one of the CPU even if its memory is pinned, which torch calls the GPU's."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        return torch._C._to_dlpack(self._tensor)


def array_over(tensor: torch.Tensor) -> jax.Array:
    """The memory of a contiguous tensor as a JAX array on the same device; see `_uncommitted`."""
    # Strides of dimensions of size 1 may be any, but jax 0.7 refuses some; here they are as JAX counts them.
    tensor = tensor.view(-1).view(tensor.shape)
    with torch.cuda.device_of(tensor):  # torch exports from its current device alone, and JAX may change that
        try:
            return _from_dlpack(tensor)
        except XLA_ERRORS:  # jax 0.7 with torch before 2.9, which exports strides of its own for them: a copy
            if 1 not in tensor.shape:
                raise
            return _from_dlpack(tensor.view(-1)).reshape(tensor.shape)


def _from_dlpack(tensor: torch.Tensor) -> jax.Array:
    array = jax.dlpack.from_dlpack(_OnHost(tensor) if tensor.device.type == "cpu" else tensor)
    return _uncommitted(array) if _is_default(*array.devices()) else array


def _uncommitted(array: jax.Array) -> jax.Array:
    """The same memory as an array that follows others to their devices, as new arrays of JAX do.

    `jax.dlpack.from_dlpack` commits to a device, and no public function takes that back without a copy. The call is
    what `jax.Array` is made with since jax 0.4; where it changes, arrays stay committed.
    """
    make: Any = type(array)
    try:
        return make(array.aval, array.sharding, [array], committed=False)
    except (TypeError, AttributeError):
        return array


def _is_default(device: Any) -> bool:
    """Whether JAX makes new arrays on `device`. All CPU devices are one to torch, so any of them will do.

    Elsewhere an array that is not committed would be moved to the default device by every computation.
    """
    default = jax.config.jax_default_device  # type: ignore[attr-defined]  # a device, the name of a platform, or None
    if device.platform == "cpu":
        return (getattr(default, "platform", default) or jax.default_backend()) == "cpu"
    return device == (default if isinstance(default, jax.Device) else jax.local_devices(backend=default)[0])


def with_foreign_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor of its own, which cannot resize it."""
    twin: torch.Tensor = torch._C._from_dlpack(torch._C._to_dlpack(tensor))
    if twin.stride() != tensor.stride():
        # Torch before 2.9 exports a stride of 1 for dimensions of size 1, which makes images with one channel
        # channels-last ones, and so the results of convolutions.
        with torch._C._AutoDispatchBelowADInplaceOrView():  # the version stays 0
            twin.as_strided_(tensor.size(), tensor.stride())
    return twin


def mesh_axis_sizes() -> tuple[int, ...]:
    """The sizes of the named axes around a trace: those of `jax.shard_map`, and of `jax.vmap` with a name."""
    return tuple(_core.get_axis_env().axis_sizes.values())


def torch_exchange_api() -> Any | None:
    """Torch's table of DLPack functions (torch 2.10 and newer), else None."""
    return getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)


def storage_uses(storage: torch.UntypedStorage) -> int:
    """How many owners memory has; none where only weak references are left.

    Before torch 2.10 `gc.get_objects()` has such storages. Anything else that is asked of one frees it twice.
    """
    return int(torch._C._storage_Use_Count(storage._cdata))


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    """The memory behind a tensor, whatever its class."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.untyped_storage()


def _uses_with_a_view(function: Callable[[torch.Tensor], int]) -> int:
    tensor = torch.ones(2)
    before = function(tensor)
    view = tensor[1:]
    return function(tensor) - before - (view is tensor)


# From torch 2.10 a tensor that C++ refers to, as views and graphs do, owns a reference to its Python object.
_OWNS_PYTHON_OBJECT = _uses_with_a_view(sys.getrefcount) > 0


def is_owned_by_torch(tensor: torch.Tensor) -> bool:
    """Whether one of the references to a tensor's Python object is torch's own."""
    if not _OWNS_PYTHON_OBJECT:
        # Torch has a reference while only C++ refers to the tensor (`THPVariable_tryResurrect`), and no function tells.
        # It becomes the result of the next function that returns the tensor (`THPVariable_Wrap`), such as this one.
        torch._C._functorch._unwrap_for_grad(tensor, -1)
        return False
    return tensor._use_count() > 1  # type: ignore[attr-defined]


def learn_storage_layout(learn: Callable[[Any], bool], exchange: Callable[[Any, Any], bool]) -> bool:
    """Let the extension find out how this torch lays out tensors, by what it has to find, and try it.

    Torch has no function that gives a storage other memory (`UntypedStorage.share_memory_` does, but takes a file
    descriptor for each). False, and the extension knows nothing, if this torch is different from all known ones.
    """
    tensors = [torch.arange(8.0), torch.arange(5)]
    views = [tensors[0][1:], tensors[0][2:]]  # one storage has three users, the other one
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    uses = [int(torch._C._storage_Use_Count(storage)) for storage in storages]
    samples = zip(tensors, (t._cdata for t in tensors), storages, (t.data_ptr() for t in tensors), uses, strict=True)
    if learn(tuple(samples)):
        first, second = torch.zeros(4), torch.ones(4)
        exchange(first.untyped_storage(), second.untyped_storage())
        if (first == 1).all() and (second == 0).all() and len(views) == 2:
            return True
    learn(())
    return False


def ffi_version() -> str:
    """The version of XLA's FFI that the installed jaxlib speaks, read from the header it ships."""
    import jaxlib

    header = Path(jaxlib.__file__).parent / "include" / "xla" / "ffi" / "api" / "c_api.h"
    found = re.findall(r"#define XLA_FFI_API_M[AJINOR]+ (\d+)", header.read_text()) if header.exists() else []
    return ".".join(found) or "unknown"


def dynamo_is_loaded() -> bool:
    """Whether something in this process may have been compiled with `torch.compile`."""
    return "torch._dynamo" in sys.modules


def _takes_int32_in_gather() -> bool:
    try:
        torch.zeros(1).gather(0, torch.zeros(1, dtype=torch.int32))
    except RuntimeError:
        return False
    return True


# torch 2.6 wants int64; from some later version on `gather` and `scatter` have int32 indices too.
TAKES_INT32_IN_GATHER = _takes_int32_in_gather()


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that leaves `torch.compile` alone: entering it neither imports nor switches off the compiler."""

    compiler_works_inside: bool = hasattr(TorchDispatchMode, "ignore_compile_internals")  # torch before 2.10

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled functions run compiled; the mode sees the operations outside them."""
        return True

    @staticmethod
    def operate(func: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation that the mode has got.

        Of a symbolic zero of forward mode and a number, torch's own call does not end within a mode (`mul`, until the
        process dies), or raises (`add`; torch 2.6 to 2.13).
        """
        if getattr(func, "_overloadname", None) == "Scalar" and _is_symbolic_zero(args[0]):
            zero, number = args[:2]
            if func is torch.ops.aten.mul.Scalar:
                return torch._efficientzerotensor(zero.shape, dtype=torch.result_type(zero, number), device=zero.device)
            args = torch.zeros(zero.shape, dtype=zero.dtype, device=zero.device), *args[1:]
        return func(*args, **(kwargs or {}))


def _is_symbolic_zero(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value._is_zerotensor()


def torch_device() -> torch.device:
    """Where torch functions on JAX's default device run."""
    # A device, the name of a platform, or None.
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform = getattr(default, "platform", default) or jax.default_backend()
    on_gpu = platform in ("gpu", "cuda", "rocm") and torch.cuda.is_available()
    return _CUDA if on_gpu else _CPU


_CPU, _CUDA = torch.device("cpu"), torch.device("cuda")  # made once: a function mode of the user's sees them being made


def is_default_generator(generator: Any) -> bool:
    """Whether it is one of torch's default generators: operators get an object of their own for it."""
    defaults: list[Any] = [torch.default_generator, *(torch.cuda.default_generators[i] for i in torch_gpus())]
    return any(generator._cdata == default._cdata for default in defaults)


def torch_gpus() -> list[int]:
    """The GPUs that torch has begun to use: asking it for them would make it begin."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


# Torch's own functions in Python around these take as long again, twice in each call on a GPU.


def current_stream(device: int) -> tuple[int, int, int]:
    """Torch's current stream on a GPU: its id, its device, and the type of that."""
    stream: tuple[int, int, int] = torch._C._cuda_getCurrentStream(device)
    return stream


def set_stream(stream: tuple[int, int, int]) -> None:
    """Make it torch's current stream, and its device the current one."""
    torch._C._cuda_setStream(stream_id=stream[0], device_index=stream[1], device_type=stream[2])


_event = torch._C._CudaEventBase if hasattr(torch._C._CudaEventBase, "record") else torch.cuda.Event
record_event: Callable[[torch.cuda.Event, torch.cuda.Stream], None] = _event.record
wait_for_event: Callable[[torch.cuda.Event, torch.cuda.Stream], None] = _event.wait


def autocast_depth() -> int:
    """How many autocast contexts this thread is inside of; below a dispatch mode nothing else tells."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def numbers_in(tensor: torch.Tensor) -> list[int]:
    """What a tensor of integers holds, within the transforms of `torch.func` too: under `vmap` all examples at once."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return tensor.flatten().tolist()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with temporarily_clear_interpreter_stack():  # torch 2.6 wraps the results of views again
        return tensor.flatten().tolist()


def registered_with_torch(item: Any) -> dict[str, Any] | list[Any] | None:
    """What an object of a class in torch's registry of pytrees consists of, by its names; None for other objects."""
    if type(item) not in torch_tree.SUPPORTED_NODES:
        return None
    is_part = lambda part: part is not item
    try:
        keyed = torch_tree.tree_flatten_with_path(item, is_leaf=is_part)[0]
    except Exception:  # it is registered without `flatten_with_keys_fn`
        return torch_tree.tree_leaves(item, is_leaf=is_part) or None
    if not keyed:  # a constant, such as `torch.Size`
        return None
    parts: dict[Any, Any] = {getattr(path[0], "key", getattr(path[0], "name", None)): part for path, part in keyed}
    is_named = len(parts) == len(keyed) and all(isinstance(name, str) for name in parts)
    return parts if is_named else [part for _, part in keyed]


def fake_mode() -> Any:
    """Torch's fake tensors: they claim a device but hold no data. The first use imports the compiler, in seconds."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


class _WithoutAddresses(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.data_ptr:
            _refuse_address(args[0])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_addresses() -> Iterator[None]:
    """Within, whoever asks a tensor without data for its address gets an error, not the address 0.

    A kernel of the user's own (Triton, `torch.cuda.jiterator`) would be launched on it, after which the GPU is of no
    use to the process.
    """
    launch = getattr(torch._C, _JITERATOR, None)  # asks in C++
    if launch is None:
        with _WithoutAddresses():
            yield
        return

    def refuse(code: Any, name: Any, by_reference: Any, outputs: Any, tensors: Any, constants: Any) -> Any:
        for tensor in tensors:
            _refuse_address(tensor)
        return launch(code, name, by_reference, outputs, tensors, constants)

    setattr(torch._C, _JITERATOR, refuse)  # for other threads too, whose tensors have addresses
    try:
        with _WithoutAddresses():
            yield
    finally:
        setattr(torch._C, _JITERATOR, launch)


_JITERATOR = "_cuda_jiterator_compile_and_launch_kernel"


def lies_nowhere(tensor: torch.Tensor) -> bool:
    """Whether a dense tensor is on the meta device, or a fake one, which claims another. Sparse ones raise."""
    return tensor.untyped_storage().device.type == "meta"


def _refuse_address(tensor: torch.Tensor) -> None:
    if lies_nowhere(tensor):
        raise NotImplementedError("a tensor without data has no address")


@contextlib.contextmanager
def without_log_of_fake_tensors() -> Iterator[None]:
    """Within, torch does not print a traceback for each operation that fails without data: another way is tried."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def without_compilation() -> contextlib.AbstractContextManager[Any]:
    """Run compiled torch functions eagerly: nothing is gained by compiling for tensors without data."""
    return torch.compiler.set_stance("force_eager") if dynamo_is_loaded() else contextlib.nullcontext()


def state_getters() -> tuple[Callable[[], Any], ...]:
    """Functions that are all false while this thread's torch state is the default (grad mode apart), unprofiled."""
    return (
        torch._C._is_any_autocast_enabled,
        torch.is_inference_mode_enabled,
        torch._C._len_torch_function_stack,
        torch._C._len_torch_dispatch_stack,
        torch._C._functorch.peek_interpreter_stack,
        _is_watched,
    )


_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # torch before 2.7 does not tell


def _has_saved_tensors_hooks() -> bool:
    return _top_hooks is not None and _top_hooks(False) is not None


_levels = {"are_watched": False}


def watch_forward_levels() -> None:
    """Let every call from now on be one in which torch's state is looked after."""
    _levels["are_watched"] = True


def _is_watched() -> bool:
    return (
        _levels["are_watched"]
        or torch_profiler._is_profiler_enabled
        or forward_ad._current_level >= 0
        or (_top_hooks is not None and _top_hooks(False) is not None)
    )


def is_transformed() -> bool:
    """Whether a transformation of `torch.func`, or forward mode, is running."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def close_abandoned_forward_level() -> bool:
    """Close the level of forward mode if a function has entered it and returned without leaving it.

    All threads share the one level, and nothing tells who has entered it. It is left alone while a `torch.func.jvp`
    runs, and while any thread is inside of a function that names what enters it.
    """
    if forward_ad._current_level < 0 or eager_transforms.JVP_NESTING:
        return False
    if any(not _ENTERS_LEVEL.isdisjoint(code.co_names) for code in _running_codes()):
        return False
    forward_ad.exit_dual_level()
    return True


_ENTERS_LEVEL = frozenset({"dual_level", "enter_dual_level"})


def _running_codes() -> list[Any]:
    codes = []
    for frame in sys._current_frames().values():
        below: Any = frame
        while below is not None:
            if below.f_globals.get("__name__") != __name__:
                codes.append(below.f_code)
            below = below.f_back
        del frame, below  # which hold the arguments of the functions that run
    return codes


def profiled(name: str) -> contextlib.AbstractContextManager[Any]:
    """A range of that name in the profile that torch records, if it records one."""
    return (
        torch_profiler.record_function(utf8(name)) if torch_profiler._is_profiler_enabled else contextlib.nullcontext()
    )


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@contextlib.contextmanager
def default_torch_state(device_types: Iterable[str]) -> Iterator[None]:
    """Torch's thread-local state as a new thread has it: grad mode on, everything else off."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.overrides import _pop_mode, _push_mode
    from torch.utils._python_dispatch import _disable_current_modes

    with contextlib.ExitStack() as stack:
        # Function modes first: they would see the rest.
        modes = [_pop_mode() for _ in range(torch._C._len_torch_function_stack())]
        for mode in modes:
            stack.callback(_push_mode, mode)
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        if torch._C._functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        if _has_saved_tensors_hooks():
            # Only the top pair counts. A result that its own node saves comes with that node: a cycle of no collector.
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, _same))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch._C._is_any_autocast_enabled():
            for device_type in device_types:
                # Without the cache, which is emptied when the outermost context ends and holds casts of arguments till
                # then. Not where it is off anyway: a function that torch compiles would be compiled for both.
                stack.enter_context(torch.autocast(device_type, enabled=False, cache_enabled=False))
        yield
