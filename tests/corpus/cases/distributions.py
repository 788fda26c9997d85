"""Log densities, entropies, divergences and transforms of `torch.distributions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributions as d
from corpus_case import Case, TorchCase, TorchTask
from torch import Tensor


def log_prob(make: Callable[..., Any], value: Tensor, *parameters: Tensor) -> Callable[[], TorchTask]:
    fn = lambda x, *parameters: make(*parameters).log_prob(x)
    return lambda: TorchTask(fn, (value, *parameters))


def mixture(x: Tensor, logits: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    parts = d.MixtureSameFamily(d.Categorical(logits=logits), d.Normal(mean, spread.exp()))
    return parts.log_prob(x)


def flow(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    transforms = [d.AffineTransform(loc, scale.exp()), d.TanhTransform(), d.AffineTransform(1.0, 2.0), d.ExpTransform()]
    return d.TransformedDistribution(d.Normal(0.0, 1.0), transforms).log_prob(x)


def divergences(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    p, q = a.exp(), b.exp()
    pairs = (d.Normal(a, p), d.Normal(b, q)), (d.Gamma(p, q), d.Gamma(q, p)), (d.Beta(p, q), d.Beta(q, p))
    return tuple(d.kl_divergence(*pair) for pair in pairs)


def reparametrised(noise: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """A sample as a function of its noise, and its density."""
    normal = d.MultivariateNormal(loc, scale_tril=torch.tril(factor, -1) + torch.diag(factor.diag().exp()))
    x = loc + normal.scale_tril @ noise
    return normal.log_prob(x) + normal.entropy()


def student(x: Tensor, df: Tensor, scale: Tensor) -> Tensor:
    return d.Independent(d.StudentT(df.exp(), 0.0, scale.exp()), 1).log_prob(x)


def hidden_markov(x: Tensor, logits: Tensor, means: Tensor) -> Tensor:
    """The likelihood of observations, by the forward algorithm."""
    transition = logits.log_softmax(-1)
    alpha = d.Normal(means, 1.0).log_prob(x[0])
    for y in x[1:]:
        alpha = torch.logsumexp(alpha[:, None] + transition, 0) + d.Normal(means, 1.0).log_prob(y)
    return alpha.logsumexp(0)


CHOLESKY = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
TASKS: dict[str, Callable[[], TorchTask]] = {
    "normal": log_prob(d.Normal, torch.tensor([0.3, -1.0]), torch.tensor([0.1, 0.2]), torch.tensor([1.0, 2.0])),
    "gamma": log_prob(d.Gamma, torch.tensor([0.3, 1.0]), torch.tensor([1.1, 0.2]), torch.tensor([1.0, 2.0])),
    "dirichlet": log_prob(d.Dirichlet, torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.1, 0.2, 3.0])),
    "von mises": log_prob(d.VonMises, torch.tensor([0.2]), torch.tensor([0.1]), torch.tensor([3.0])),
    "negative binomial": log_prob(
        lambda n, p: d.NegativeBinomial(n, logits=p), torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([0.4])
    ),
    "multivariate normal": log_prob(
        lambda m, c: d.MultivariateNormal(m, covariance_matrix=c @ c.mT), torch.ones(2), torch.zeros(2), CHOLESKY
    ),
    "low-rank normal": log_prob(
        d.LowRankMultivariateNormal, torch.ones(3), torch.zeros(3), torch.ones(3, 1), torch.tensor([1.0, 2.0, 0.5])
    ),
    "lkj": log_prob(lambda c: d.LKJCholesky(2, c), torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor(1.5)),
    "wishart": log_prob(lambda df, s: d.Wishart(df, scale_tril=s), torch.eye(2) + 0.1, torch.tensor(3.0), CHOLESKY),
    "mixture": lambda: TorchTask(mixture, (torch.randn(4), torch.randn(3), torch.randn(3), torch.zeros(3))),
    "transformed": lambda: TorchTask(flow, (torch.tensor([1.5, 3.0]), torch.zeros(2), torch.zeros(2))),
    "divergences": lambda: TorchTask(divergences, (torch.randn(3), torch.randn(3))),
    "reparametrised sample": lambda: TorchTask(
        reparametrised, (torch.randn(3), torch.randn(3), 0.3 * torch.randn(3, 3))
    ),
    "student t": lambda: TorchTask(student, (torch.randn(3), torch.ones(3), torch.zeros(3))),
    "hidden markov model": lambda: TorchTask(hidden_markov, (torch.randn(5), torch.randn(3, 3), torch.randn(3))),
}


def cases() -> Iterator[Case]:
    yield from (TorchCase(name, make) for name, make in TASKS.items())
