"""`DifferentiableFunction`: the wrapper that users hold."""

from __future__ import annotations

from t2j_core.extend import P, TorchFunction

from .._base.options import DiffOptions


class DifferentiableFunction(TorchFunction[P]):
    """A PyTorch function that JAX can call, differentiate and batch; made by `torch2jax`."""

    @property
    def diff_options(self) -> DiffOptions:
        """How it is differentiated and batched."""
        (found,) = [options for options in self.builder.option_groups() if isinstance(options, DiffOptions)]
        return found

    def explain(self) -> str:
        """What was decided for each signature that was used, and why: a text to print.

        As `t2j_core.TorchFunction.explain`, and how derivatives and batches are computed.

        >>> from t2j_autodiff import torch2jax
        >>> import jax, jax.numpy as jnp, torch
        >>> f = torch2jax(torch.sin)
        >>> _ = jax.jit(jax.grad(f))(1.0 * jnp.ones(()))
        >>> print(f.explain())
        sin(f32[]) -> (f32[])
          outputs: inferred by a run without data
          args[0]: lent, not copied
          output: copied (below 1,048,576 bytes)
          reverse mode: recompute (few operations on small tensors)
          forward mode: torch.func.jvp
          vmap: not used so far
        """
        return super().explain()
