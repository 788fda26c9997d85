"""What the kernel is asked to draw in the tests of its numbers and of its code."""

from __future__ import annotations

import torch
from t2j_core._random.distributions import Bernoulli, Exponential, Integers, Normal, Uniform

WHOLE = Integers(-(1 << 63), 1 << 64)
EXACT = [
    (Uniform(), torch.float32),
    (Uniform(), torch.float64),
    (Uniform(), torch.float16),
    (Uniform(), torch.bfloat16),
    (Uniform(-1.0, 3.0), torch.float16),
    (Bernoulli(0.3), torch.bool),
    (Bernoulli(0.0), torch.bool),
    (Bernoulli(1.0), torch.float32),
    (Bernoulli(0.7), torch.bfloat16),
    (Bernoulli(0.7), torch.float64),
    (Integers(-5, 10), torch.int64),
    (Integers(1 << 40, (1 << 62) + 5), torch.int64),
    (Integers(-(1 << 63), (1 << 63) + 7), torch.int64),
    (WHOLE, torch.int64),
]
ROUNDED = [
    (Uniform(-0.1, 3.3), torch.float32),
    (Normal(), torch.float32),
    (Normal(1.0, 2.0), torch.float64),
    (Normal(), torch.bfloat16),
    (Exponential(2.0), torch.float32),
    (Exponential(0.1), torch.float64),
]
