"""The Triton kernel that draws random numbers from a JAX key. Imported where a GPU draws: Triton is not a dependency.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, 2011) turns a counter of four
32-bit words and a key of two into four random words. It is applied twice. First, to the key and the position of the
draw, which gives a key and half a counter for this draw; then, with the number of the block as the other half, to each
block of the result: four elements of up to 32 random bits, or two of 64.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCKS = 256  # of one program

UNIFORM = tl.constexpr(0)
NORMAL = tl.constexpr(1)
EXPONENTIAL = tl.constexpr(2)
BERNOULLI = tl.constexpr(3)
INTEGERS = tl.constexpr(4)

_TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Four random words. All words are uint32."""
    for _ in tl.static_range(10):
        high, high_2 = tl.umulhi(c0, 0xD2511F53), tl.umulhi(c2, 0xCD9E8D57)
        low, low_2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high ^ c3 ^ k1, low
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def key_of_draw(key, position, WORDS: tl.constexpr):
    """The key of a draw (the first two words), and half of its counters."""
    w0, w1 = tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32)
    w2, w3 = w0 ^ w0, w0 ^ w0
    if WORDS == 4:
        w2, w3 = tl.load(key + 2).to(tl.uint32), tl.load(key + 3).to(tl.uint32)
    return philox(w2, w3, (w0 ^ w0) + position.to(tl.uint32), w0 ^ w0, w0, w1)


@triton.jit
def words_of_block(block, s0, s1, s2, s3):
    """The random words of a block, or of several, for the key of a draw."""
    return philox(block.to(tl.uint32), (block >> 32).to(tl.uint32), s2, s3, s0, s1)


# In a kernel a function returns once: Triton compares the types of all returns, even of those that it leaves out.


@triton.jit
def _unit(bits, dtype: tl.constexpr):
    """In [0, 1), on a grid that the dtype represents."""
    if dtype == tl.float64:
        unit = (bits >> 11).to(tl.float64) * (1.0 / (1 << 53))
    elif dtype == tl.float16:
        unit = (bits >> 21).to(tl.float32) * (1.0 / (1 << 11))
    elif dtype == tl.bfloat16:
        unit = (bits >> 24).to(tl.float32) * (1.0 / (1 << 8))
    else:
        unit = (bits >> 8).to(tl.float32) * (1.0 / (1 << 24))
    return unit


@triton.jit
def _positive_unit(bits, dtype: tl.constexpr):
    """In (0, 1]."""
    if dtype == tl.float64:
        unit = ((bits >> 11).to(tl.float64) + 1) * (1.0 / (1 << 53))
    else:
        unit = (bits.to(tl.float32) + 1) * (1.0 / (1 << 32))
    return unit


@triton.jit
def _inner_unit(bits, dtype: tl.constexpr):
    """In (0, 1)."""
    if dtype == tl.float64:
        unit = ((bits >> 12).to(tl.float64) + 0.5) * (1.0 / (1 << 52))
    else:
        unit = ((bits >> 9).to(tl.float32) + 0.5) * (1.0 / (1 << 23))
    return unit


@triton.jit
def _scalar(bits, dtype: tl.constexpr):
    """A float64 that is passed as an integer: Triton would pass a Python float as float32."""
    wide = bits.to(tl.int64).to(tl.float64, bitcast=True)
    if dtype != tl.float64:
        wide = wide.to(tl.float32)
    return wide


@triton.jit
def _one(bits, a, b, dtype: tl.constexpr, KIND: tl.constexpr):
    """An element from its own bits."""
    if KIND == BERNOULLI:
        value = bits.to(tl.int64) < a
        if dtype == tl.bfloat16:
            value = value.to(tl.float32)  # the interpreter of Triton 3.9 converts to bfloat16 from floats only
        value = value.to(dtype)
    elif KIND == INTEGERS:
        count = b.to(tl.int64).to(tl.uint64, bitcast=True)
        high = tl.where(count == 0, bits, tl.umulhi(bits, count + (bits ^ bits)))
        value = high.to(tl.int64, bitcast=True) + a
    elif KIND == EXPONENTIAL:
        value = (-tl.log(_inner_unit(bits, dtype)) / _scalar(a, dtype)).to(dtype)
    else:
        low, top = _scalar(a, dtype), _scalar(b, dtype)
        value = (_unit(bits, dtype) * (top - low) + low).to(dtype)
        value = tl.where(value.to(low.dtype) < top, value, low.to(dtype))
    return value


@triton.jit
def _two(bits, more, a, b, dtype: tl.constexpr, KIND: tl.constexpr):
    """Two elements from two words. Normal ones by Box and Muller."""
    if KIND == NORMAL:
        radius = tl.sqrt(tl.maximum(-2 * tl.log(_positive_unit(bits, dtype)), 0.0)) * _scalar(b, dtype)
        wide: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
        angle = _unit(more, wide) * _TWO_PI
        first = (radius * tl.cos(angle) + _scalar(a, dtype)).to(dtype)
        second = (radius * tl.sin(angle) + _scalar(a, dtype)).to(dtype)
    else:
        first = _one(bits, a, b, dtype, KIND)
        second = _one(more, a, b, dtype, KIND)
    return first, second


@triton.jit(do_not_specialize=["position", "a", "b"])
def draw(
    out, key, n, position, a, b, WORDS: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr, BLOCKS: tl.constexpr
):
    """Write `n` elements to `out`, which is contiguous."""
    dtype: tl.constexpr = out.dtype.element_ty
    s0, s1, s2, s3 = key_of_draw(key, position, WORDS)
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    x0, x1, x2, x3 = words_of_block(block, s0, s1, s2, s3)
    if WIDE:
        first = (x1.to(tl.uint64) << 32) | x0.to(tl.uint64)
        second = (x3.to(tl.uint64) << 32) | x2.to(tl.uint64)
        v0, v1 = _two(first, second, a, b, dtype, KIND)
        values = tl.interleave(v0, v1)
        start = tl.program_id(0).to(tl.int64) * (2 * BLOCKS)
        place = start + tl.arange(0, 2 * BLOCKS)
    else:
        v0, v1 = _two(x0, x1, a, b, dtype, KIND)
        v2, v3 = _two(x2, x3, a, b, dtype, KIND)
        values = tl.interleave(tl.interleave(v0, v2), tl.interleave(v1, v3))
        start = tl.program_id(0).to(tl.int64) * (4 * BLOCKS)
        place = start + tl.arange(0, 4 * BLOCKS)
    tl.store(out + place, values, mask=place < n)
