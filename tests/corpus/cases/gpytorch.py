"""Gaussian processes of gpytorch, and linear operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import torch
from corpus_case import Case, TorchCase, TorchTask
from gpytorch import kernels
from torch import Tensor, nn


class Exact(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: Any, kernel: Any) -> None:
        super().__init__(x, y, likelihood)
        self.mean, self.kernel = gpytorch.means.LinearMean(x.shape[-1]), kernel

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))


class MarginalLikelihood(nn.Module):
    """The objective of training, as a function of the data."""

    def __init__(self, kernel: Any) -> None:
        super().__init__()
        x, y = torch.rand(6, 2), torch.randn(6)
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        self.model = Exact(x, y, likelihood, kernel)
        self.objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, self.model)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        prior = self.model.forward(x)
        return self.objective(prior, y)


class Posterior(nn.Module):
    """Mean and variance at new points."""

    def __init__(self) -> None:
        super().__init__()
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        kernel = kernels.ScaleKernel(kernels.RBFKernel())
        self.model = Exact(torch.rand(6, 2), torch.randn(6), likelihood, kernel).eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model(x)
        return posterior.mean, posterior.variance


class Variational(gpytorch.models.ApproximateGP):
    def __init__(self) -> None:
        points = torch.rand(4, 2)
        distribution = gpytorch.variational.CholeskyVariationalDistribution(4)
        super().__init__(gpytorch.variational.VariationalStrategy(self, points, distribution))
        self.mean, self.kernel = gpytorch.means.ConstantMean(), kernels.MaternKernel(nu=1.5)

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))


class EvidenceBound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Variational()
        self.model.variational_strategy.variational_params_initialized.fill_(1)
        likelihood = gpytorch.likelihoods.BernoulliLikelihood()
        self.bound = gpytorch.mlls.VariationalELBO(likelihood, self.model, num_data=5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bound(self.model(x), y)


def likelihood(make: Callable[[], Any]) -> Callable[[], TorchTask]:
    return lambda: TorchTask(MarginalLikelihood(make()).double(), (torch.rand(6, 2).double(), torch.randn(6).double()))


def gram(make: Callable[[], Any]) -> Callable[[], TorchTask]:
    def task() -> TorchTask:
        kernel = make().double()

        class Gram(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.kernel = kernel

            def forward(self, a: Tensor, b: Tensor) -> Tensor:
                return self.kernel(a, b).to_dense()

        return TorchTask(Gram(), (torch.rand(3, 2).double(), torch.rand(4, 2).double()))

    return task


TASKS = {
    "marginal likelihood, rbf": likelihood(lambda: kernels.ScaleKernel(kernels.RBFKernel(ard_num_dims=2))),
    "marginal likelihood, matern": likelihood(lambda: kernels.ScaleKernel(kernels.MaternKernel(nu=2.5))),
    "marginal likelihood, sum of kernels": likelihood(
        lambda: kernels.PeriodicKernel() * kernels.LinearKernel() + kernels.RQKernel()
    ),
    "spectral mixture kernel": gram(lambda: kernels.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=2)),
    "polynomial kernel": gram(lambda: kernels.PolynomialKernel(power=2)),
    "posterior": lambda: TorchTask(Posterior().double(), (torch.rand(3, 2).double(),)),
    "evidence bound": lambda: TorchTask(
        EvidenceBound().double(), (torch.rand(5, 2).double(), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]).double())
    ),
}


def cases() -> Iterator[Case]:
    yield from (TorchCase(name, make, x64=True, tolerance=1e-6) for name, make in TASKS.items())
