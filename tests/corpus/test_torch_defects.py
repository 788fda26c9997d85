"""Faults of torch that the corpus has found, in plain torch. Where one is gone, the judge can be trusted again."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="observed with torch 2.13")


def test_the_second_derivative_of_weight_norm_is_wrong():
    """By reverse mode twice. The norm of the weight counts as a constant (`_weight_norm_interface_backward`)."""
    torch.manual_seed(0)
    v, tangent, ct = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    g = torch.rand(3, 1, dtype=torch.float64)

    def product(norm):
        x = v.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((norm(x) * ct).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient, x, tangent)[0]

    right = product(lambda x: x * (g / x.norm(dim=1, keepdim=True)))
    assert not torch.allclose(product(lambda x: torch._weight_norm(x, g, 0)), right, rtol=0.1)


def test_the_two_modes_differ_in_the_padding_row_of_an_embedding():
    """Reverse mode leaves out the gradient of that row by design, and forward mode does not."""
    embed = lambda table: torch.nn.functional.embedding(torch.tensor([0, 1]), table, padding_idx=0)
    table, tangent = torch.randn(2, 3), torch.ones(2, 3)
    pushed = torch.func.jvp(embed, (table,), (tangent,))[1]
    pulled = torch.func.vjp(embed, table)[1](torch.ones(2, 3))[0]
    assert float(pushed.sum()) == 6.0
    assert float((pulled * tangent).sum()) == 3.0
