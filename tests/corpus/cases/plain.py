"""Recipes of plain torch: layers with state, losses, solvers, and functions that differentiate inside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from corpus_case import Case, TorchCase, TorchTask
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint


def positive_definite(n: int) -> Tensor:
    a = torch.randn(n, n)
    return a @ a.T + n * torch.eye(n)


class PackedLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, [4, 2], batch_first=True)
        return rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


class TokenClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=0)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != 0).unsqueeze(-1)
        return self.head((self.gru(self.embedding(tokens))[0] * mask).sum(1))


class FourierLayer(nn.Module):
    """A layer of a Fourier neural operator, with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 4, dtype=torch.complex64) / 3)
        self.skip = nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.fft.rfft(x)
        out = torch.zeros_like(modes)
        out[..., :4] = torch.einsum("bix,iox->box", modes[..., :4], self.weight)
        return F.gelu(torch.fft.irfft(out, n=x.shape[-1]) + self.skip(x))


class Round(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return (x * scale).round() / scale

    @staticmethod
    def backward(ctx: Any, ct: Tensor) -> tuple[Tensor, None]:
        return ct.clone(), None


class Swish(torch.autograd.Function):
    """With saved tensors, in the style that `torch.func` supports, and forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, ct: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return ct * (s + x * s * (1 - s))

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return t * (s + x * s * (1 - s))


class MixtureOfExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == k)
            out = out.index_add(0, rows, weights[rows, slot, None] * expert(x[rows]))
        return out


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(lambda x, layer=layer: layer(x).tanh(), x, use_reentrant=False)
        return x


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Linear(2 * 36, 6)
        nn.init.normal_(self.theta.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(x.flatten(1)).view(-1, 2, 3) + torch.eye(2, 3)
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.middle = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.InstanceNorm2d(8, affine=True))
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        up = self.up(F.leaky_relu(self.middle(skip)))
        return self.head(torch.cat([skip, F.interpolate(up, size=skip.shape[-2:], mode="bilinear")], 1))


class WithCache(nn.Module):
    """A module that computes a table at its first call and keeps it, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.calls = 0
        self.linear = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.calls += 1
        self.steps += 1
        if self.table is None or self.table.shape[0] < x.shape[0]:
            self.table = torch.arange(x.shape[0])[:, None] / torch.arange(1, 5)
        return {"out": self.linear(x) + self.table.sin(), "extra": (x.argmax(-1), [x.norm()])}


def maml(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A gradient step inside, as in meta-learning."""
    inner = torch.func.grad(lambda w: ((x @ w - y) ** 2).mean())(w)
    return ((x @ (w - 0.1 * inner) - y) ** 2).mean()


def by_autograd_grad(x: Tensor) -> Tensor:
    """A force, as the gradient of an energy, by `torch.autograd.grad` inside."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad():
        energy = (x.sin() ** 2).sum() + (x[:, None] - x[None]).pow(2).sum() / 3
        return -torch.autograd.grad(energy, x, create_graph=True)[0]


def sinkhorn(cost: Tensor) -> Tensor:
    f, g = torch.zeros(cost.shape[0]), torch.zeros(cost.shape[1])
    for _ in range(20):
        f = -torch.logsumexp(g - cost, 1)
        g = -torch.logsumexp(f[:, None] - cost, 0)
    return ((f[:, None] + g - cost).exp() * cost).sum()


def until_converged(a: Tensor, b: Tensor) -> Tensor:
    """A solver whose number of steps depends on values."""
    x = torch.zeros_like(b)
    for _ in range(100):
        step = 0.1 * (b - a @ x)
        x = x + step
        if step.detach().norm() < 1e-6:
            break
    return x


def kalman(observations: Tensor, noise: Tensor) -> Tensor:
    mean, cov, total = torch.zeros(2), torch.eye(2), torch.zeros(())
    step = torch.tensor([[1.0, 0.1], [0.0, 1.0]])
    for y in observations:
        mean, cov = step @ mean, step @ cov @ step.T + 0.01 * torch.eye(2)
        spread = cov[0, 0] + noise.exp()
        gain = cov[:, 0] / spread
        total = total - 0.5 * ((y - mean[0]) ** 2 / spread + spread.log() + math.log(2 * math.pi))
        mean, cov = mean + gain * (y - mean[0]), cov - torch.outer(gain, cov[0])
    return total


def ctc(logits: Tensor) -> Tensor:
    lengths = torch.tensor([6, 5]), torch.tensor([2, 1])
    return F.ctc_loss(logits.log_softmax(-1), torch.tensor([[1, 2], [3, 0]]), *lengths)


def in_place(x: Tensor) -> Tensor:
    """Writes into what it makes, through views."""
    y = x.clone()
    y[1:] += x[:-1].cos()
    y.view(-1)[::2].mul_(2.0)
    y.masked_fill_(y > 1, 0.5)
    return y


def geometric_product(q: Tensor, v: Tensor) -> Tensor:
    """Rotates vectors by quaternions."""
    q = F.normalize(q, dim=-1)
    u, w = q[..., 1:], q[..., :1]
    t = 2 * torch.linalg.cross(u, v)
    return v + w * t + torch.linalg.cross(u, t)


def ensemble(weights: Tensor, x: Tensor) -> Tensor:
    """`torch.func.vmap` inside."""
    return torch.func.vmap(lambda w, x: (w @ x).tanh().sum(), in_dims=(0, None))(weights, x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def spectral(x: Tensor) -> Tensor:
    """The magnitudes of a short-time Fourier transform."""
    return torch.stft(x, 8, hop_length=4, window=torch.hann_window(8), return_complex=True).abs().add(1e-3).log()


def principal(x: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(x.T @ x)
    return values, vectors.abs()


def convnet(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def batch_norm() -> TorchTask:
    return TorchTask(convnet(nn.BatchNorm2d(4)), (torch.randn(3, 3, 6, 6),))


def attention_weights() -> TorchTask:
    x = torch.randn(2, 4, 8)
    masked = {"key_padding_mask": torch.tensor([[False, False, False, True], [False, False, True, True]])}
    return TorchTask(nn.MultiheadAttention(8, 2, batch_first=True).eval(), (x, x.clone(), x.clone()), masked)


def transformer() -> TorchTask:
    net = nn.Transformer(8, 2, 1, 1, 16, batch_first=True).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    return TorchTask(net, (torch.randn(2, 4, 8), torch.randn(2, 3, 8)), {"tgt_mask": mask})


def encoder() -> TorchTask:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    return TorchTask(net, (torch.randn(2, 4, 8),))


def temporal_convolutions() -> TorchTask:
    convs = [parametrizations.weight_norm(nn.Conv1d(3, 3, 3, dilation=d, padding=d)) for d in (1, 2)]
    return TorchTask(nn.Sequential(convs[0], nn.ELU(), convs[1], nn.Dropout(0.5)).eval(), (torch.randn(2, 3, 9),))


def spectral_norm() -> TorchTask:
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.PReLU(), nn.Linear(6, 1)).eval()
    return TorchTask(net, (torch.randn(3, 4),))


def orthogonal() -> TorchTask:
    return TorchTask(parametrizations.orthogonal(nn.Linear(4, 4)), (torch.randn(3, 4),))


def tied() -> TorchTask:
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    net[2].weight = net[0].weight
    return TorchTask(net, (torch.randn(2, 5),))


def cosine_loss() -> TorchTask:
    fn = lambda a, b, sign: F.cosine_embedding_loss(a, b, sign, margin=0.1)
    return TorchTask(fn, (torch.randn(3, 4), torch.randn(3, 4), torch.tensor([1.0, -1.0, 1.0])))


def embedding_bag() -> TorchTask:
    tokens, offsets = torch.tensor([1, 2, 4, 5, 4, 3]), torch.tensor([0, 2, 5])
    return TorchTask(nn.EmbeddingBag(7, 3, mode="mean"), (tokens, offsets))


def cross_entropy() -> TorchTask:
    fn = lambda logits, target: F.cross_entropy(logits, target.long(), label_smoothing=0.1, ignore_index=3)
    return TorchTask(fn, (torch.randn(4, 5), torch.tensor([1, 3, 0, 4])))


def cholesky_solve() -> TorchTask:
    def fn(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.linalg.cholesky(0.5 * (a + a.mT))
        return torch.cholesky_solve(b, factor), factor.diagonal().log().sum()

    return TorchTask(fn, (positive_definite(4), torch.randn(4, 2)))


TRAINED = {"convnet with batch norm, training": batch_norm}
TASKS = {
    "mlp": lambda: TorchTask(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)), (torch.randn(4, 6),)),
    "convnet with batch norm": lambda: TorchTask(convnet(nn.BatchNorm2d(4)).eval(), (torch.randn(3, 3, 6, 6),)),
    "lstm": lambda: TorchTask(nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True), (torch.randn(2, 4, 5),)),
    "gru with a state": lambda: TorchTask(nn.GRU(5, 6), (torch.randn(4, 2, 5), torch.randn(1, 2, 6))),
    "lstm on a packed sequence": lambda: TorchTask(PackedLSTM(), (torch.randn(2, 4, 4),)),
    "token classifier": lambda: TorchTask(TokenClassifier(), (torch.tensor([[1, 4, 10, 0], [3, 3, 0, 0]]),)),
    "multi-head attention with weights": attention_weights,
    "causal attention": lambda: TorchTask(attention, tuple(torch.randn(2, 2, 4, 8) for _ in range(3))),
    "transformer": transformer,
    "transformer encoder": encoder,
    "temporal convolutions with weight norm": temporal_convolutions,
    "spectral norm": spectral_norm,
    "orthogonal parametrization": orthogonal,
    "tied weights": tied,
    "unet": lambda: TorchTask(UNet(), (torch.randn(2, 2, 6, 6),)),
    "fourier neural operator": lambda: TorchTask(FourierLayer(), (torch.randn(2, 3, 10),)),
    "straight-through function": lambda: TorchTask(lambda x: Round.apply(x, 4.0) * x, (torch.randn(5),)),
    "function with forward mode": lambda: TorchTask(lambda x: Swish.apply(x.sin()), (torch.randn(5),)),
    "mixture of experts": lambda: TorchTask(MixtureOfExperts(), (torch.randn(5, 4),)),
    "checkpointed layers": lambda: TorchTask(Checkpointed(), (torch.randn(2, 5),)),
    "spatial transformer": lambda: TorchTask(SpatialTransformer(), (torch.randn(2, 2, 6, 6),)),
    "module with a cache": lambda: TorchTask(WithCache(), (torch.randn(3, 4),)),
    "embedding bag": embedding_bag,
    "cross entropy": cross_entropy,
    "cosine embedding loss": cosine_loss,
    "ctc loss": lambda: TorchTask(ctc, (torch.randn(6, 2, 5),)),
    "meta-learning step": lambda: TorchTask(maml, (torch.randn(3), torch.randn(5, 3), torch.randn(5))),
    "force by autograd.grad": lambda: TorchTask(by_autograd_grad, (torch.randn(4),)),
    "vmap inside": lambda: TorchTask(ensemble, (torch.randn(3, 4, 5), torch.randn(5))),
    "sinkhorn": lambda: TorchTask(sinkhorn, (torch.rand(3, 4),)),
    "solver with a tolerance": lambda: TorchTask(
        until_converged, (torch.eye(3) + 0.1 * torch.rand(3, 3), torch.randn(3))
    ),
    "kalman filter": lambda: TorchTask(kalman, (torch.randn(5), torch.tensor(0.1))),
    "in-place writes": lambda: TorchTask(in_place, (torch.randn(4, 3),)),
    "quaternions": lambda: TorchTask(geometric_product, (torch.randn(3, 4), torch.randn(3, 3))),
    "short-time fourier transform": lambda: TorchTask(spectral, (torch.randn(2, 24),)),
    "principal components": lambda: TorchTask(principal, (torch.randn(6, 3),)),
    "cholesky solve": cholesky_solve,
}


def cases() -> Iterator[Case]:
    yield from (TorchCase(name, make, mutable=True) for name, make in TRAINED.items())
    yield from (TorchCase(name, make) for name, make in TASKS.items())
