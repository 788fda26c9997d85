"""Which kernel computes scaled dot product attention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def math_attention() -> Iterator[None]:
    """Within, `scaled_dot_product_attention` runs as matrix products and a softmax.

    The fused kernels have neither forward mode (https://github.com/pytorch/pytorch/issues/117629) nor second
    derivatives (https://github.com/pytorch/pytorch/issues/116350). The choice holds for all threads.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.MATH]):
        yield
