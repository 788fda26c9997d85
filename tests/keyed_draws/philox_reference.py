"""A sampler in NumPy, written from the publication of Philox and from the docstrings of `t2j_core._random`.

The numbers of the Triton kernel are compared with it. Tests without a GPU draw from it on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from t2j_core._random.distributions import Bernoulli, Distribution, Exponential, Integers, Normal, Uniform

Words = tuple[np.ndarray, ...]


def philox4x32(counter: Words, key: Words) -> Words:
    """Ten rounds, on arrays of uint64 that hold words of 32 bits."""
    low = np.uint64(0xFFFFFFFF)
    (c0, c1, c2, c3), (k0, k1) = ([np.asarray(word, np.uint64) for word in words] for words in (counter, key))
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = p1 >> np.uint64(32) ^ c1 ^ k0, p1 & low, p0 >> np.uint64(32) ^ c3 ^ k1, p0 & low
        k0, k1 = k0 + np.uint64(0x9E3779B9) & low, k1 + np.uint64(0xBB67AE85) & low
    return c0, c1, c2, c3


def words(key: torch.Tensor, position: int, first_block: int, blocks: int) -> np.ndarray:
    """The random words of a draw, four to a block: uint64[blocks, 4]."""
    w = [np.uint64(word) for word in (*key.tolist(), 0, 0)]
    a, b, c, d = philox4x32((w[2], w[3], np.uint64(position), np.uint64(0)), (w[0], w[1]))
    block = np.arange(first_block, first_block + blocks, dtype=np.uint64)
    drawn = philox4x32((block & np.uint64(0xFFFFFFFF), block >> np.uint64(32), c, d), (a, b))
    return np.stack(drawn, 1)


def fill(out: torch.Tensor, key: torch.Tensor, position: int, distribution: Distribution, /) -> None:
    """The sampler."""
    assert out.is_contiguous()
    assert key.shape in ((2,), (4,))
    is_wide = isinstance(distribution, Integers) or (
        out.dtype == torch.float64 and not isinstance(distribution, Bernoulli)
    )
    n, per_block = out.numel(), 2 if is_wide else 4
    bits = words(key, position, 0, -(-n // per_block))
    if is_wide:
        bits = bits[:, 0::2] | bits[:, 1::2] << np.uint64(32)
    numbers = _numbers(bits.reshape(-1), distribution, out.dtype)[:n]
    out.copy_(torch.from_numpy(np.ascontiguousarray(numbers)).reshape(out.shape))
    if isinstance(distribution, Uniform):  # rounding may reach the upper end
        out[out >= distribution.high] = distribution.low


def _numbers(bits: np.ndarray, distribution: Distribution, dtype: torch.dtype) -> np.ndarray:
    f = np.float64 if dtype == torch.float64 else np.float32
    width = 64 if dtype == torch.float64 else 32
    digits = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}.get(dtype, 0)
    match distribution:
        case Uniform(low, high):
            return _grid(bits, width, digits, f) * (f(high) - f(low)) + f(low)
        case Normal(mean, std):
            first, second = bits[0::2], bits[1::2]
            unit = _grid(first, width, 53, f) + f(2.0**-53) if width == 64 else (first.astype(f) + f(1)) * f(2.0**-32)
            radius = np.sqrt(np.maximum(f(-2) * np.log(unit), f(0))) * f(std)
            angle = _grid(second, width, 53 if width == 64 else 24, f) * f(2 * np.pi)
            return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1) + f(mean)
        case Exponential(rate):
            places = width - (12 if width == 64 else 9)
            return -np.log(_grid(bits, width, places, f) + f(2.0 ** -(places + 1))) / f(rate)
        case Bernoulli(p):
            return bits < np.uint64(np.ceil(p * 2**32))
        case Integers(low, count):
            values = [(int(word) * count >> 64) + low for word in bits]
            return np.array(values, np.int64)


def _grid(bits: np.ndarray, width: int, digits: int, f: type) -> np.ndarray:
    """In [0, 1): the first bits of a word."""
    return (bits >> np.uint64(width - digits)).astype(f) * f(2.0**-digits)
