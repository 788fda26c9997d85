"""Run the checks of `opdb.py` on one operator after another, in a process that may die.

Every line of the input is a request. Every line of the output is one result, written as soon as it is known, so that
a crash loses only the check that caused it.

`python opdb_worker.py [DEVICE]`. With a GPU, samples and native torch are on the GPU; results are compared on the host.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import random
import re
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

warnings.simplefilter("ignore")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.utils._pytree as torch_tree
from t2j_autodiff import clear_residuals, dtype_t2j, j2t, t2j, torch2jax

CHECKS = ("forward", "vjp", "jvp", "vmap", "vmap_vjp")
FEW_CHECKS = ("forward", "vjp")
"""For dtypes that are there to be stored in rather than to compute with, and for what is compiled, which takes long."""

TOLERANCE = {"float32": 1e-4, "complex64": 1e-4, "float64": 1e-9, "complex128": 1e-9, "bfloat16": 3e-2}
UNINITIALISED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
CONTRADICTION = 0.01  # larger than the rounding error of any dtype
SHRINK = 0.97  # the factor of the second example; a scaled matrix stays symmetric, positive and of full rank

Tensors = list[torch.Tensor]


class NotCounted(Exception):
    """The check gives no information about the library."""


class Mismatch(AssertionError):
    """The library's result differs from native torch."""


# --- tensors -------------------------------------------------------------------------------------------------------


def is_inexact(t: torch.Tensor) -> bool:
    """Whether a tensor can have a derivative."""
    return t.is_floating_point() or t.is_complex()


def is_dense(t: torch.Tensor) -> bool:
    """Whether a JAX array can hold a tensor."""
    return t.layout == torch.strided and not (t.is_quantized or t.is_nested or t.is_meta)


def twin(t: torch.Tensor) -> torch.Tensor:
    """A copy, with the strides and the surrounding memory of the original, which some operators read."""
    if t.is_conj() or t.is_neg() or not t.numel():
        return t.detach().clone()
    storage = t.untyped_storage().clone()
    return torch.empty(0, dtype=t.dtype, device=t.device).set_(storage, t.storage_offset(), t.shape, t.stride())


def leaves_of(y: Any) -> Tensors:
    """The tensors of an output, without their history."""
    return [leaf for leaf in torch_tree.tree_leaves(y) if isinstance(leaf, torch.Tensor)]


def noise(like: Sequence[torch.Tensor], seed: int) -> Tensors:
    """Random tensors of the same shapes and dtypes: the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, dtype=t.dtype, generator=generator).to(t.device) for t in like]


def compare(got: Sequence[Any], expected: Sequence[torch.Tensor], tolerance: float) -> None:
    """Raise `Mismatch` unless the arrays equal the tensors in shape, dtype and value."""
    if len(got) != len(expected):
        raise Mismatch(f"{len(got)} outputs instead of {len(expected)}")
    for k, (array, tensor) in enumerate(zip(got, expected, strict=True)):
        compare_one(array, tensor.detach().resolve_conj().resolve_neg().cpu(), f"output {k}", tolerance)


def compare_one(array: Any, expected: torch.Tensor, label: str, tolerance: float) -> None:
    """Like `compare`, for one output."""
    if tuple(array.shape) != tuple(expected.shape):
        raise Mismatch(f"{label} has shape {tuple(array.shape)} instead of {tuple(expected.shape)}")
    stored = jax.dtypes.canonicalize_dtype(dtype_t2j(expected.dtype))
    if array.dtype != stored:
        raise Mismatch(f"{label} has dtype {array.dtype} instead of {stored}")
    got = j2t(array).cpu()
    if not is_inexact(expected):
        if not torch.equal(got, expected.to(got.dtype)):
            raise Mismatch(f"{label} differs in {int((got != expected.to(got.dtype)).sum())} of {got.numel()} elements")
        return
    wide = torch.complex128 if expected.is_complex() else torch.float64
    got, expected = got.to(wide), expected.to(wide)
    sizes = expected.abs()
    scale = float(sizes[sizes.isfinite()].max()) if bool(sizes.isfinite().any()) else 0.0
    close = torch.isclose(got, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-2), equal_nan=True)
    if not bool(close.all()):
        worst = (got - expected).abs().nan_to_num(nan=torch.inf)[~close].max()
        raise Mismatch(f"{label} differs by up to {float(worst):.2g} where the largest value is {scale:.2g}")


def native(call: Callable[[], Any]) -> Any:
    """The result of native torch. If torch raises, the check is not counted."""
    try:
        return call()
    except NotCounted:
        raise
    except Exception as error:
        raise NotCounted(f"native torch fails ({type(error).__name__})") from error


# --- one sample ----------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One sample of an operator, as a function of its tensors. Native results are computed once."""

    fn: Callable[..., Any]
    tensors: Tensors
    tolerance: float
    run: Callable[..., Any]  # `jax.jit`, or the identity
    device: str = "cpu"
    compiles: bool = False
    examples: list[Tensors] = field(default_factory=list)  # of a batch

    # --- results of torch ---

    def values(self, tensors: Tensors) -> Tensors:
        """The outputs."""
        with torch.no_grad():
            return leaves_of(self.fn(*map(twin, tensors)))

    @cached_property
    def expected(self) -> Tensors:
        return native(lambda: self.values(self.tensors))

    @cached_property
    def moving(self) -> list[int]:
        """The inputs that torch can differentiate."""
        inexact = [i for i, t in enumerate(self.tensors) if is_inexact(t)]
        if not inexact:
            raise NotCounted("no input that can be differentiated")
        if not self.smooth_outputs:
            raise NotCounted("no output that can be differentiated")
        if self._has_vjp(inexact):
            return inexact
        some = [i for i in inexact if len(inexact) > 1 and self._has_vjp([i])]
        return some if some and self._has_vjp(some) else inexact

    def _has_vjp(self, ins: list[int]) -> bool:
        try:
            self.native_vjp(self.tensors, ins, noise(self.smooth_outputs, 1))
        except Exception:
            return False
        return True

    @cached_property
    def smooth_outputs(self) -> Tensors:
        return [y for y in self.expected if is_inexact(y)]

    def native_vjp(self, tensors: Tensors, ins: list[int], cotangents: Tensors) -> Tensors:
        """The pullback in JAX's convention: torch's is its conjugate."""
        x = [twin(t) for t in tensors]
        for i in ins:
            x[i].requires_grad_()
        y = [t for t in leaves_of(self.fn(*x)) if is_inexact(t)]
        pairs = [(t, ct.conj()) for t, ct in zip(y, cotangents, strict=True) if t.requires_grad]
        if not pairs:
            return [torch.zeros_like(x[i]) for i in ins]
        outputs, weights = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, [x[i] for i in ins], weights, allow_unused=True)
        return [torch.zeros_like(x[i]) if g is None else g.conj() for i, g in zip(ins, grads, strict=True)]

    def native_jvp(self, ins: list[int], tangents: Tensors) -> Tensors:
        """The pushforward, in forward mode. It raises if an output has no tangent.

        `scatter_reduce` with "prod" and a chunked `linear_cross_entropy` lose the tangent without an error (torch 2.13,
        `scatter_reduce_jvp`), and the result would be zero.
        """

        def moved(*moving: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = [twin(t) for t in self.tensors]
            for i, t in zip(ins, moving, strict=True):
                x[i] = t
            return tuple(t for t in leaves_of(self.fn(*x)) if is_inexact(t))

        primals = tuple(twin(self.tensors[i]) for i in ins)
        return list(torch.func.jvp(moved, primals, tuple(tangents), strict=True)[1])

    def batch(self, works: Callable[[Tensors], Any]) -> list[Tensors]:
        """Two examples: the sample and a scaled one, or the sample twice if torch refuses the scaled one."""
        other = [t * SHRINK if is_inexact(t) else t for t in self.tensors]
        try:
            works(other)
            shapes = [t.shape for t in self.values(other)]
        except Exception:
            shapes = []
        return [self.tensors, other if shapes == [t.shape for t in self.expected] else self.tensors]

    # --- results of the library ---

    @cached_property
    def wrapped(self) -> Callable[..., Any]:
        """The library's function. The examples declare 64-bit integers, which JAX does not have while x64 is off."""
        return torch2jax(self.fn, *self.tensors, compile=self.compiles)

    @property
    def not_compiled(self) -> str:
        """Why the library's function, or something derived from it, was not compiled."""
        if not self.compiles or "wrapped" not in vars(self):
            return ""
        lines = [line.strip() for line in self.wrapped.explain().splitlines()]
        reasons = (line.removeprefix("not compiled: ") for line in lines if line.startswith("not compiled: "))
        return "; ".join(re.sub(r", in line \d+ of .*", "", reason) for reason in reasons)  # it is in this file

    @cached_property
    def arrays(self) -> list[Any]:
        return [t2j(twin(t)) for t in self.tensors]

    def outputs(self, *arrays: Any) -> list[Any]:
        """The arrays that the library's function returns."""
        return [leaf for leaf in jax.tree.leaves(self.wrapped(*arrays)) if isinstance(leaf, jax.Array)]

    def restricted(self, arrays: Sequence[Any], ins: list[int]) -> Callable[..., list[Any]]:
        """The function from the inputs `ins` to the outputs that have derivatives."""

        def g(*moving: Any) -> list[Any]:
            x = list(arrays)
            for i, value in zip(ins, moving, strict=True):
                x[i] = value
            return [y for y in self.outputs(*x) if jnp.issubdtype(y.dtype, jnp.inexact)]

        return g

    def pull(self, arrays: list[Any], cotangents: list[Any]) -> Any:
        moving = [arrays[i] for i in self.moving]
        return jax.vjp(self.restricted(arrays, self.moving), *moving)[1](cotangents)

    def push(self, arrays: list[Any], tangents: list[Any]) -> Any:
        moving = [arrays[i] for i in self.moving]
        return jax.jvp(self.restricted(arrays, self.moving), moving, tangents)[1]

    # --- checks ---

    def forward(self) -> None:
        expected = self.expected
        compare(self.run(self.outputs)(*self.arrays), expected, self.tolerance)

    def vjp(self) -> None:
        cotangents = noise(self.smooth_outputs, 2)
        expected = native(lambda: self.native_vjp(self.tensors, self.moving, cotangents))
        compare(self.run(self.pull)(self.arrays, list(map(t2j, cotangents))), expected, self.tolerance)

    def jvp(self) -> None:
        tangents = noise([self.tensors[i] for i in self.moving], 3)
        cotangents = noise(self.smooth_outputs, 4)
        expected: Tensors | None = None
        try:
            expected = self.native_jvp(self.moving, tangents)
        except Exception:  # no forward mode, or no tangent; the transpose is checked instead
            grads = native(lambda: self.native_vjp(self.tensors, self.moving, cotangents))
        else:
            if self.is_contradicted(expected, cotangents, tangents):
                grads, expected = self.native_vjp(self.tensors, self.moving, cotangents), None
        got = self.run(self.push)(self.arrays, list(map(t2j, tangents)))
        if expected is None:
            compare_products(got, cotangents, grads, tangents, self.tolerance)
        else:
            compare(got, expected, self.tolerance)

    def is_contradicted(self, pushed: Tensors, cotangents: Tensors, tangents: Tensors) -> bool:
        """Whether torch's own two modes differ. Reverse mode counts as correct.

        They differ for `max_unpool2d` with a repeated index, `triangular_solve` and `linalg.cholesky` (torch 2.13).
        """
        try:
            grads = self.native_vjp(self.tensors, self.moving, cotangents)
        except Exception:
            return False
        left = torch.cat([products(ct, p.clone()) for ct, p in zip(cotangents, pushed, strict=True)])
        right = torch.cat([products(g, t) for g, t in zip(grads, tangents, strict=True)])
        return float((left.sum() - right.sum()).abs()) > CONTRADICTION * float(left.norm() + right.norm())

    def vmap(self) -> None:
        examples = self.batch(lambda x: None)
        expected = native(lambda: [self.values(x) for x in examples])
        got = self.run(jax.vmap(self.outputs))(*stacked(examples))
        compare(got, [torch.stack(column) for column in zip(*expected, strict=True)], self.tolerance)

    def vmap_vjp(self) -> None:
        cotangents = [noise(self.smooth_outputs, seed) for seed in (5, 6)]
        examples = self.batch(lambda x: self.native_vjp(x, self.moving, cotangents[1]))
        expected = native(
            lambda: [self.native_vjp(x, self.moving, ct) for x, ct in zip(examples, cotangents, strict=True)]
        )
        got = self.run(jax.vmap(self.pull))(stacked(examples), stacked(cotangents))
        compare(got, [torch.stack(column) for column in zip(*expected, strict=True)], self.tolerance)


def stacked(examples: Sequence[Tensors]) -> list[Any]:
    """Stack examples to a batch of arrays."""
    return [t2j(torch.stack(column)) for column in zip(*examples, strict=True)]


def compare_products(
    pushed: Sequence[Any], cotangents: Tensors, grads: Tensors, tangents: Tensors, tolerance: float
) -> None:
    """Check the identity <ct, J t> = <J^T ct, t>. For complex numbers only the real parts are equal."""
    if [tuple(p.shape) for p in pushed] != [tuple(ct.shape) for ct in cotangents]:
        raise Mismatch(f"tangents have shapes {[p.shape for p in pushed]}")
    terms = [products(ct, j2t(p)) for ct, p in zip(cotangents, pushed, strict=True)]
    left = torch.cat(terms) if terms else torch.zeros(1)
    right = torch.cat([products(g, t) for g, t in zip(grads, tangents, strict=True)])
    scale = float(torch.maximum(left.abs().sum(), right.abs().sum()))
    difference = abs(float(left.sum()) - float(right.sum()))
    if not difference <= 10 * tolerance * max(scale, 1e-2) and not left.isnan().any():
        raise Mismatch(f"the dot products differ by {difference:.2g} of {scale:.2g}")


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The real parts of the products of all elements, on the host."""
    return (a.cpu().to(torch.complex128) * b.cpu().to(torch.complex128)).real.flatten()


# --- one operator --------------------------------------------------------------------------------------------------


def name_of(op: Any) -> str:
    """The operator and its variant, which together are unique."""
    return f"{op.name}:{op.variant_test_name}" if op.variant_test_name else op.name


def seed(number: int) -> None:
    """Seed all generators that draw samples."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def samples_of(op: Any, dtype: torch.dtype, count: int, device: str) -> list[Any]:
    """The first samples, equal in every run."""
    seed(zlib.crc32(name_of(op).encode()))
    return list(itertools.islice(op.sample_inputs(device, dtype, requires_grad=False), count))


def case_of(op: Any, sample: Any, tolerance: float, run: Callable[..., Any], device: str, compiles: bool) -> Case:
    """The sample as a function of its tensors. Everything else is a constant, including tensors on other devices.

    Some samples of a GPU have numbers or indices on the CPU, but a JAX program has all operands on one device.
    """
    leaves, spec = torch_tree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.device.type == device]

    def fn(*tensors: torch.Tensor) -> Any:
        full = list(leaves)
        for i, t in zip(places, tensors, strict=True):
            full[i] = t
        first, args, kwargs = torch_tree.tree_unflatten(full, spec)
        return sample.output_process_fn_grad(op(first, *args, **kwargs))

    fn.__name__ = op.name
    return Case(fn, [leaves[i].detach() for i in places], tolerance, run, device, compiles)


def check_is_fair(op: Any, case: Case) -> None:
    """Raise `NotCounted` if native torch has no result to compare with."""
    if op.name in UNINITIALISED:
        raise NotCounted("uninitialised memory")
    if not all(map(is_dense, case.tensors)):
        raise NotCounted("sparse, nested or quantised input")
    seed(1)
    first = case.expected
    if not first:
        raise NotCounted("no tensor output")
    if not all(map(is_dense, first)):
        raise NotCounted("sparse, nested or quantised output")
    if any(t.dtype == torch.complex32 for t in (*case.tensors, *first)):
        raise NotCounted("dtype that JAX lacks")
    if any(t.device.type != case.device for t in first):
        raise NotCounted("output on another device")
    slack = 0.0 if case.device == "cpu" else case.tolerance  # sums on a GPU have no fixed order
    seed(2)
    for a, b in zip(first, native(lambda: case.values(case.tensors)), strict=True):
        if not torch.allclose(a, b, rtol=slack, atol=slack, equal_nan=True) if is_inexact(a) else not torch.equal(a, b):
            raise NotCounted("random output")


def results_of(
    op: Any, dtype: str, n_samples: int, first: int, run: Callable[..., Any], device: str, compiles: bool
) -> Iterator[dict[str, Any]]:
    """Yield one result per check, and before it a line that names the check."""
    if getattr(torch, dtype) not in op.supported_dtypes(device):
        yield {"sample": 0, "check": "samples", "outcome": "not counted", "reason": "dtype unsupported"}
        return
    yield {"sample": first, "check": "samples"}
    try:
        samples = samples_of(op, getattr(torch, dtype), n_samples, device)
    except Exception as error:
        reason = f"torch cannot make samples ({type(error).__name__})"
        yield {"sample": 0, "check": "samples", "outcome": "not counted", "reason": reason, "lost": has_lost(device)}
        return
    names = CHECKS if dtype in ("float32", "float64") and not compiles else FEW_CHECKS
    for number, sample in enumerate(samples):
        if number < first:
            continue
        case = case_of(op, sample, TOLERANCE[dtype], run, device, compiles)
        for check in names:
            yield {"sample": number, "check": check}
            result = result_of(op, case, check)
            yield {"sample": number, "check": check, **result, "lost": has_lost(device)}
            if check == "forward" and result["outcome"] != "passed":
                break  # every later check would fail in the same way


def has_lost(device: str) -> bool:
    """Whether the process can no longer use its GPU, as after an illegal access or a failed assertion in a kernel."""
    try:
        if device != "cpu":
            torch.cuda.synchronize()
    except Exception:
        return True
    return False


def result_of(op: Any, case: Case, check: str) -> dict[str, Any]:
    """The outcome of one check, with the reason if it did not pass."""
    start = time.perf_counter()
    outcome, reason = "passed", ""
    try:
        if check == "forward":
            check_is_fair(op, case)
        elif not case.tensors:
            raise NotCounted("no tensor input")
        seed(3)
        getattr(case, check)()
    except NotCounted as error:
        outcome, reason = "not counted", str(error)
    except Exception as error:
        outcome, reason = "failed", first_line(error)
    found = {"outcome": outcome, "reason": reason, "seconds": round(time.perf_counter() - start, 3)}
    return found if outcome == "not counted" else found | {"not_compiled": first_line_of(case.not_compiled)}


def first_line(error: Exception) -> str:
    """An exception in one line. Under `jax.jit` the library's exception is inside an XLA error."""
    return first_line_of(f"{type(error).__name__}: {str(error).strip()}")


def first_line_of(text: str) -> str:
    """The first line of a text, shortened."""
    text = text.partition("\n")[0]
    return re.sub(r"^JaxRuntimeError: \w+: \[t2j error \d+\] ([\w]+\.)*", "", text)[:200]


# --- process -------------------------------------------------------------------------------------------------------

CLEAR_AFTER = 50  # operators; compiled programs are not needed again


def waiting(run: Callable[..., Any]) -> Callable[..., Any]:
    """A program that waits for its results.

    Until then its arguments must stay alive, because torch's allocator would reuse their memory.
    """
    return lambda f: lambda *args: jax.block_until_ready(run(f)(*args))


def prepare(device: str) -> str:
    """Initialise the device, or raise, and return its name."""
    if device == "cpu":
        return ""
    jax.devices(device)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.cuda.get_device_name()


def main() -> None:
    """Serve requests: `{"op": index, "dtype": ..., "samples": ..., "first": ..., "eager": ..., "compile": ...}`."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # operators may print
    faulthandler.enable()
    torch.set_num_threads(1)

    def say(line: dict[str, Any]) -> None:
        replies.write(json.dumps(line) + "\n")
        replies.flush()

    kind = prepare(device)  # before an import after which torch refuses to set cuDNN flags
    from torch.testing._internal.common_methods_invocations import op_db

    warnings.simplefilter("ignore")
    say({"device": kind, "names": [name_of(op) for op in op_db]})
    for count, line in enumerate(sys.stdin, 1):
        request = json.loads(line)
        run = (lambda f: f) if request["eager"] else jax.jit
        run = run if device == "cpu" else waiting(run)
        op = op_db[request["op"]]
        for result in results_of(
            op, request["dtype"], request["samples"], request["first"], run, device, request["compile"]
        ):
            say(result)
        say({"done": request["op"]})
        if count % CLEAR_AFTER == 0:
            jax.clear_caches()
            clear_residuals()


if __name__ == "__main__":
    main()
