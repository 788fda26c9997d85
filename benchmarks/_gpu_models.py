"""The questions of `gpu.py` about models: a forward and a gradient step, in float32 unless stated otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

from _gpu import DEVICE, GRAPH, Launch, Makers, Plan, again, call, free, graphed, in_jax, in_time, race, returns

# This import comes first because it sets up threads before torch loads.
# isort: split
import jax
import jax.numpy as jnp
import torch
from _contestants import FLOOR, JNP, PEER, TORCH, floor, peer, t2j, t2j_autodiff
from _harness import Report, count_row
from _models import Loss, Params, loss_of, mlp_in_jnp
from _models import mlp as perceptron
from torch.nn.functional import scaled_dot_product_attention

AS_ARRAYS = 't2j, residuals="graph"'
COMPILED = "torch.compile"
IN_A_ROW = 4  # steps that are queued before one wait, as in training
COMPILING = 25.0  # seconds that a compiling contestant needs


class Problem:
    """A loss, its parameters and an input, in torch and in JAX."""

    def __init__(self, loss: Loss, params: Params, x: torch.Tensor) -> None:
        self.loss = loss
        self.params = dict(sorted(params.items()))  # the order of a pytree, so that all compile the same program
        self.x = x

    @cached_property
    def arrays(self) -> Any:
        return in_jax((self.params, self.x))

    @cached_property
    def leaves(self) -> Params:
        return {key: p.clone().requires_grad_() for key, p in self.params.items()}

    def forward(self) -> torch.Tensor:
        return self.loss(self.params, self.x)  # without a graph: no parameter requires gradients

    def step(self) -> Any:
        value = self.loss(self.leaves, self.x)
        grads = torch.autograd.grad(value, list(self.leaves.values()))
        return value.detach(), dict(zip(self.leaves, grads, strict=True))

    def forwards(self) -> dict[str, Callable[[], Launch]]:
        """Ways to compute the loss."""
        return {
            TORCH: lambda: self.forward,
            GRAPH: lambda: graphed(self.forward),
            "t2j": lambda: call(t2j(self.loss), self.arrays),
            PEER: lambda: call(peer(self.loss, *self.arrays, entry="torch2jax_without_vjp"), self.arrays),
        }

    def kinds(self) -> dict[str, tuple[dict[str, Callable[[], Launch]], Launch, float]]:
        """The questions: the contestants, the function that computes the expected result, and the tolerance."""
        return {
            "forward": (self.forwards(), self.forward, 1e-3),
            "value_and_grad": (self.steps(), self.step, 1e-2),
        }

    def steps(self) -> dict[str, Callable[[], Launch]]:
        """Ways to compute the loss and its gradients."""
        in_jit: Callable[[Any], Launch] = lambda fn: call(jax.value_and_grad(fn), self.arrays)
        return {
            TORCH: lambda: self.step,
            GRAPH: lambda: graphed(self.step),
            "t2j": lambda: in_jit(t2j_autodiff(self.loss)),
            AS_ARRAYS: lambda: in_jit(t2j_autodiff(self.loss, residuals="graph")),
            PEER: lambda: in_jit(peer(self.loss, *self.arrays)),
        }


# --- leaves -----------------------------------------------------------------------------------------------------------


def linears(layers: int) -> torch.nn.Module:
    """Linear layers of 16 by 16 that preserve the norm of their input."""
    modules = [torch.nn.Linear(16, 16) for _ in range(layers)]
    for module in modules:
        torch.nn.init.orthogonal_(module.weight)
    return torch.nn.Sequential(*modules)


def leaves(report: Report, plan: Plan) -> None:
    """The cost of parameters: modules with 10, 100 and 300 parameters and little work."""
    for layers in plan.layers:
        if not in_time(report, "leaves", f"{2 * layers}"):
            continue
        torch.manual_seed(0)
        loss, params = loss_of(linears(layers).to(DEVICE))
        problem = Problem(loss, params, torch.randn(16, 16, device=DEVICE))
        forwards = problem.forwards() | {
            FLOOR: lambda problem=problem: call(lambda p, x: floor(x, *p.values()), problem.arrays)
        }
        _leaves("forward", forwards, problem.forward(), len(params), report, plan)
        _leaves("value_and_grad", problem.steps(), problem.step(), len(params), report, plan)
        free()


def _leaves(kind: str, makers: Makers, expected: Any, n: int, report: Report, plan: Plan) -> None:
    question = f"{kind}, 16 x 16 linear layers, leaves"
    ready = race(question, makers, expected, report, plan.pace, at=n, tolerance=1e-3)
    medians = returns(f"host time of {question}", ready, report, *_visits(plan, 6), at=n)
    if TORCH not in medians:
        return
    above = {name: median - medians[TORCH] for name, median in medians.items() if name not in (TORCH, GRAPH, FLOOR)}
    title = f"host time of {question}, above torch, per leaf"
    report.rows += [count_row(title, name, "us", value / n, at=n) for name, value in above.items()]


def _visits(plan: Plan, calls: int) -> tuple[int, int]:
    return (1, 2) if plan.is_quick else (5, calls)


# --- models -----------------------------------------------------------------------------------------------------------


def bert() -> torch.nn.Module:
    """MiniLM's architecture with random weights."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return Hidden(BertModel(config, add_pooling_layer=False).eval())


class Hidden(torch.nn.Module):
    """The last hidden state of a model of the transformers library."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids).last_hidden_state


class Encoder(torch.nn.Module):
    """A transformer of 12 layers and 98 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(16_384, 768)
        layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embed(ids))


def resnet() -> torch.nn.Module:
    """ResNet-18 with random weights; batch normalisation uses its running statistics."""
    from torchvision.models import resnet18

    return resnet18().eval()


class Model(NamedTuple):
    """A function that makes a model, and the shape of its input: token ids, or images."""

    make: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]
    quick: tuple[int, ...]

    def input(self, plan: Plan) -> torch.Tensor:
        shape = self.quick if plan.is_quick else self.shape
        if len(shape) == 2:
            return torch.randint(0, 10_000, shape, dtype=torch.int32, device=DEVICE)
        return torch.randn(shape, device=DEVICE)


MODELS = {
    "MiniLM": Model(bert, (64, 128), (2, 16)),
    "ResNet-18": Model(resnet, (64, 3, 224, 224), (2, 3, 64, 64)),
    "transformer of 98M parameters": Model(Encoder, (16, 256), (1, 16)),
}


def models(report: Report, plan: Plan) -> None:
    """Forward, and loss with gradients, until the result is ready and until the call returns."""
    for name in MODELS:
        if not in_time(report, name):
            continue
        try:
            _model(name, report, plan)
        except Exception as error:  # a missing library, for example, must not stop the other models
            report.skip(name, "all", error)
        free()


def _model(name: str, report: Report, plan: Plan) -> None:
    title, problem = _problem(name, plan)
    for kind, (makers, run, tolerance) in problem.kinds().items():
        question = f"{kind}, {title}"
        ready = race(question, makers, run(), report, plan.slow, tolerance=tolerance)
        in_a_row = f"{IN_A_ROW} times {question}"
        race(in_a_row, again(ready), run(), report, plan.brief, times=IN_A_ROW, tolerance=tolerance)
        returns(f"host time of {question}", ready, report, *_visits(plan, 3))


def compiled(report: Report, plan: Plan) -> None:
    """The same, compiled by torch. The first call takes long, so no contestant begins shortly before the end."""
    for name in ("MiniLM", "transformer of 98M parameters"):
        if not in_time(report, f"{name}, compiled", seconds=COMPILING):
            continue
        try:
            _compiled(name, report, plan)
        except Exception as error:
            report.skip(f"{name}, compiled", "all", error)
        torch.compiler.reset()
        free()


def _compiled(name: str, report: Report, plan: Plan) -> None:
    title, problem = _problem(name, plan)
    fast = Problem(torch.compile(problem.loss), problem.params, problem.x).kinds()
    for kind, (plain, run, tolerance) in problem.kinds().items():
        makers = {TORCH: plain[TORCH], COMPILED: fast[kind][0][TORCH], "t2j, compiled": fast[kind][0]["t2j"]}
        question = f"{kind}, {title}, compiled"
        race(question, makers, run(), report, plan.slow, tolerance=tolerance, seconds=COMPILING)


def _problem(name: str, plan: Plan) -> tuple[str, Problem]:
    """The name of a model's problem, and the problem."""
    model = MODELS[name]
    torch.manual_seed(0)
    with DEVICE:  # a GPU makes random weights faster
        module = model.make()
    # Not the mean square: after a layer norm it is constant, and its gradients are rounding errors.
    loss, params = loss_of(module.to(DEVICE), lambda out: out.logsumexp(-1).mean())
    x = model.input(plan)
    unit = "tokens" if x.ndim == 2 else "images"
    return f"{name}, {' x '.join(map(str, x.shape))} {unit}", Problem(loss, params, x)


# --- what JAX can do alone --------------------------------------------------------------------------------------------


def mlp(report: Report, plan: Plan) -> None:
    """A perceptron that `jnp` can express, in float32 without TF32 in both frameworks."""
    width, depth, batch = (64, 4, 16) if plan.is_quick else (2048, 4, 1024)
    torch.manual_seed(0)
    loss, params = loss_of(perceptron(width, depth).to(DEVICE))
    problem = Problem(loss, params, torch.randn(batch, width, device=DEVICE))
    in_jnp: dict[str, Callable[..., Any]] = {"forward": mlp_in_jnp, "value_and_grad": jax.value_and_grad(mlp_in_jnp)}
    for kind, (makers, run, tolerance) in problem.kinds().items():
        makers.pop(AS_ARRAYS, None)
        makers[JNP] = partial(call, in_jnp[kind], problem.arrays)
        question = f"{kind}, MLP {depth} x {width}, batch {batch}, float32 without TF32"
        race(question, makers, run(), report, plan.slow, tolerance=tolerance)
    free()


def attention(report: Report, plan: Plan) -> None:
    """Causal attention in bfloat16, in the layout of the kernels of both frameworks: batch, time, heads, channels."""
    shape = (1, 64, 2, 16) if plan.is_quick else (8, 2048, 16, 64)
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(3)]
    arrays = in_jax(tensors)
    title = f"attention, bfloat16, causal, {' x '.join(map(str, shape))}"

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v).float().square().mean()

    leaves = [x.clone().requires_grad_() for x in tensors]
    step = lambda: list(torch.autograd.grad(loss(*leaves), leaves))
    gradient = partial(jax.grad, argnums=(0, 1, 2))
    forwards: dict[str, Callable[[], Launch]] = {
        TORCH: lambda: lambda: attend(*tensors),
        GRAPH: lambda: graphed(lambda: attend(*tensors)),
        "t2j": lambda: call(t2j(attend), arrays),
    }
    steps: dict[str, Callable[[], Launch]] = {
        TORCH: lambda: step,
        GRAPH: lambda: graphed(step),
        "t2j": lambda: call(gradient(t2j_autodiff(loss)), arrays),
        AS_ARRAYS: lambda: call(gradient(t2j_autodiff(loss, residuals="graph")), arrays),
    }
    for name in ("cudnn", "xla"):
        attend_jax = partial(jax.nn.dot_product_attention, is_causal=True, implementation=name)
        loss_jax = lambda q, k, v, f=attend_jax: jnp.square(f(q, k, v).astype("float32")).mean()
        forwards[f"JAX, {name}"] = partial(call, attend_jax, arrays)
        steps[f"JAX, {name}"] = partial(call, gradient(loss_jax), arrays)
    race(f"forward, {title}", forwards, attend(*tensors), report, plan.pace, tolerance=3e-2)
    race(f"gradients, {title}", steps, step(), report, plan.pace, tolerance=3e-2)
    free()
