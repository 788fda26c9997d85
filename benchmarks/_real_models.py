"""Models as people train them: modules whose result is the loss of a batch, and the batches.

Weights are random. Dropout is left out, so that every contestant computes the same numbers. BatchNorm normalises with
the statistics of the batch and keeps no running ones, because not every contestant can return changed buffers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import torch
from _models import mlp, mlp_in_jnp
from torch import nn
from torch.nn import functional

Reduce = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Task(nn.Module):
    """A model and the loss of its result and its input."""

    def __init__(self, model: nn.Module, loss: Reduce) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loss(self.model(x), x)


class Real(NamedTuple):
    """A function that makes a task and its batch, the same loss in jnp if there is one, and targets for t2j / torch."""

    make: Callable[[], tuple[Task, torch.Tensor]]
    in_jnp: Callable[[dict[str, jax.Array], jax.Array], jax.Array] | None = None
    targets: Mapping[str, float] = {}


def class_zero(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The cross entropy of the first class."""
    return functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long, device=x.device))


def next_token(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The cross entropy of each next token."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten().long())


def mean_square(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return out.square().mean()


# --- images -----------------------------------------------------------------------------------------------------------


def normalised(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and BatchNorm."""
    padding = kernel // 2
    conv = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out, track_running_stats=False))


class Inverted(nn.Module):
    """An inverted residual: expand, convolve each channel, project.

    SiLU has no kink, where a rounding error would change the gradients of other implementations.
    """

    def __init__(self, channels: int, out: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = factor * channels
        self.width = out
        self.expand = nn.Sequential(normalised(channels, wide, 1), nn.SiLU()) if factor > 1 else nn.Identity()
        self.depthwise = normalised(wide, wide, 3, stride, groups=wide)
        self.project = normalised(wide, out, 1)
        self.is_residual = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(functional.silu(self.depthwise(self.expand(x))))
        return x + y if self.is_residual else y


def mobile_convnet() -> nn.Sequential:
    """31 convolutions: a stem, a block that does not expand, nine inverted residuals, and a wide last one."""
    blocks = [Inverted(16, 16, 1, 1)]
    widths, strides = (24, 24, 32, 32, 64, 64, 96, 96, 160), (1, 1, 2, 1, 2, 1, 1, 1, 2)
    for out, stride in zip(widths, strides, strict=True):
        blocks.append(Inverted(blocks[-1].width, out, stride, 4))
    stem = nn.Sequential(normalised(3, 16, 3, 2), nn.SiLU())
    head = nn.Sequential(normalised(blocks[-1].width, 1280, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(stem, *blocks, head, nn.Linear(1280, 1000))


class Basic(nn.Module):
    """The block of ResNet-18: two convolutions and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = normalised(channels, out, 3, stride)
        self.second = normalised(out, out, 3)
        self.shortcut = nn.Identity() if stride == 1 else normalised(channels, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(functional.relu(self.first(x)))
        return functional.relu(y + self.shortcut(x))


def resnet18() -> nn.Sequential:
    """ResNet-18 with 1,000 classes."""
    stem = nn.Sequential(normalised(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
    blocks = [block for inner, out, stride in stages for block in (Basic(inner, out, stride), Basic(out, out, 1))]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


# --- text -------------------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """The sizes of a transformer."""

    words: int
    positions: int
    width: int
    heads: int
    layers: int


TINY_BERT = Sizes(words=30_522, positions=512, width=128, heads=2, layers=2)
GPT2_SMALL = Sizes(words=50_257, positions=1024, width=768, heads=12, layers=12)


class Attention(nn.Module):
    """Self-attention with several heads."""

    def __init__(self, sizes: Sizes, *, is_causal: bool) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.is_causal = is_causal
        self.inner = nn.Linear(sizes.width, 3 * sizes.width)
        self.outer = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        split = self.inner(x).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.outer(y.transpose(1, 2).reshape(batch, time, width))


class Layer(nn.Module):
    """Attention and a perceptron, each with a shortcut; normalised before (GPT-2) or after (BERT)."""

    def __init__(self, sizes: Sizes, *, is_causal: bool) -> None:
        super().__init__()
        width = sizes.width
        gelu = nn.GELU("tanh" if is_causal else "none")
        self.attention = Attention(sizes, is_causal=is_causal)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), gelu, nn.Linear(4 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.is_before = is_causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part, norm in zip((self.attention, self.perceptron), self.norms, strict=True):
            x = x + part(norm(x)) if self.is_before else norm(x + part(x))
        return x


class Embedded(nn.Module):
    """The sum of the embeddings of tokens and positions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.words = nn.Embedding(sizes.words, sizes.width)
        self.positions = nn.Embedding(sizes.positions, sizes.width)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.words(ids) + self.positions.weight[: ids.shape[1]]


class Gpt2(nn.Module):
    """A decoder whose output layer is the table of its tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = Embedded(sizes)
        self.layers = nn.Sequential(*(Layer(sizes, is_causal=True) for _ in range(sizes.layers)))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.norm(self.layers(self.embed(ids))), self.embed.words.weight)


class Bert(nn.Module):
    """An encoder that classifies a text by its first token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = nn.Sequential(Embedded(sizes), nn.LayerNorm(sizes.width))
        self.layers = nn.Sequential(*(Layer(sizes, is_causal=False) for _ in range(sizes.layers)))
        self.pool = nn.Sequential(nn.Linear(sizes.width, sizes.width), nn.Tanh(), nn.Linear(sizes.width, 2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.pool(self.layers(self.embed(ids))[:, 0])


class Text(nn.Module):
    """A large table of words, a perceptron on each word, and the mean."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.narrow(functional.gelu(self.wide(self.words(ids)))).mean(1)


def text_in_jnp(params: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
    """The loss of the text model."""
    x = params["words.weight"][ids] @ params["wide.weight"].T + params["wide.bias"]
    logits = (jax.nn.gelu(x, approximate=False) @ params["narrow.weight"].T + params["narrow.bias"]).mean(1)
    return -jax.nn.log_softmax(logits)[:, 0].mean()


# --- tasks ------------------------------------------------------------------------------------------------------------


def of_images(make: Callable[[], nn.Module], *shape: int) -> tuple[Task, torch.Tensor]:
    torch.manual_seed(0)
    return Task(make(), class_zero), torch.randn(shape)


def of_tokens(make: Callable[[], nn.Module], words: int, loss: Reduce, *shape: int) -> tuple[Task, torch.Tensor]:
    torch.manual_seed(0)
    return Task(make(), loss), torch.randint(0, words, shape, dtype=torch.int32)


def of_leaves(leaves: int) -> tuple[Task, torch.Tensor]:
    """Linear layers of 16 by 16 with tanh, each of two leaves. Orthogonal weights keep gradients from vanishing."""
    torch.manual_seed(0)
    module = mlp(16, leaves // 2)
    for layer in module:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
    return Task(module, mean_square), torch.randn(16, 16)


def in_jnp(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The loss on the parameters of a task."""
    return lambda params, x: loss({name.removeprefix("model."): array for name, array in params.items()}, x)


def leaves_task(leaves: int) -> Real:
    targets = {10: (1.7, 1.6), 100: (1.4, 1.35), 300: (1.35, 1.3)}[leaves]
    return Real(
        functools.partial(of_leaves, leaves), in_jnp(mlp_in_jnp), dict(zip(("forward", "step"), targets, strict=True))
    )


REAL: dict[str, Real] = {
    "mobile convnet, 4 x 3 x 32 x 32": Real(
        lambda: of_images(mobile_convnet, 4, 3, 32, 32), targets={"forward": 1.15, "step": 1.15}
    ),
    "ResNet-18, 4 x 3 x 64 x 64": Real(lambda: of_images(resnet18, 4, 3, 64, 64)),
    "tiny BERT, 8 x 32 tokens": Real(lambda: of_tokens(lambda: Bert(TINY_BERT), TINY_BERT.words, class_zero, 8, 32)),
    "GPT-2 small, 1 x 32 tokens": Real(
        lambda: of_tokens(lambda: Gpt2(GPT2_SMALL), GPT2_SMALL.words, next_token, 1, 32)
    ),
    "text model with a table of 30,000 x 384, 16 x 64 tokens": Real(
        lambda: of_tokens(lambda: Text(30_000, 384), 30_000, class_zero, 16, 64), in_jnp(text_in_jnp), {"step": 1.03}
    ),
}


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """The number of parameters, of leaves and of convolutions."""
    parameters = list(module.parameters())
    convolutions = sum(isinstance(inner, nn.Conv2d) for inner in module.modules())
    return {"parameters": sum(p.numel() for p in parameters), "leaves": len(parameters), "convolutions": convolutions}
