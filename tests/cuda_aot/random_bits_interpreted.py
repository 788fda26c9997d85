"""Tests of the kernel's numbers, run by Triton's interpreter against a reference in NumPy.

`test_random_bits.py` runs them in a process of their own: Triton decides at its import whether it interprets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

sys.path.append(str(Path(__file__).parents[1] / "keyed_draws"))

import philox_reference as reference
from random_bits_cases import EXACT, ROUNDED
from t2j_core._random import philox, sampler
from t2j_core._random.distributions import Uniform

KEYS = [(1, 2), (0xFFFFFFFF, 0), (1, 2, 3, 0xFFFFFFFF)]

# Of the publication: kat_vectors in https://github.com/DEShawResearch/random123
ANSWERS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@triton.jit
def _answer(words, out):
    x0, x1, x2, x3 = philox.philox(
        tl.load(words),
        tl.load(words + 1),
        tl.load(words + 2),
        tl.load(words + 3),
        tl.load(words + 4),
        tl.load(words + 5),
    )
    tl.store(out, x0)
    tl.store(out + 1, x1)
    tl.store(out + 2, x2)
    tl.store(out + 3, x3)


@pytest.mark.parametrize("counter, key, answer", ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_answers(counter, key, answer):
    given, out = torch.tensor([*counter, *key], dtype=torch.uint32), torch.zeros(4, dtype=torch.uint32)
    _answer[(1,)](given, out)
    assert tuple(out.tolist()) == answer
    assert tuple(int(word) for word in reference.philox4x32(counter, key)) == answer


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("distribution, dtype", [*EXACT, *ROUNDED], ids=str)
def test_the_kernel_draws_what_the_reference_draws(distribution, dtype, key):
    words = torch.tensor(key, dtype=torch.uint32)
    got, expected = (torch.empty(3, 701, dtype=dtype) for _ in range(2))
    sampler._fill(got, words, 7, distribution)
    reference.fill(expected, words, 7, distribution)
    rounding = 0 if (distribution, dtype) in EXACT else {torch.float64: 1e-14, torch.bfloat16: 1e-2}.get(dtype, 2e-6)
    np.testing.assert_allclose(got.double(), expected.double(), rtol=rounding, atol=rounding)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 1023, 1024, 1025])
def test_no_element_is_left_out_and_none_beyond(n):
    words, whole = torch.tensor([5, 6], dtype=torch.uint32), torch.full((n + 64,), -1.0)
    sampler._fill(whole[:n], words, 0, Uniform())
    assert bool((whole[:n] >= 0).all())
    assert bool((whole[n:] == -1).all())


@triton.jit
def _first_words(key, out, block, BLOCKS: tl.constexpr):
    s0, s1, s2, s3 = philox.key_of_draw(key, tl.load(block) * 0, 2)
    x0, x1, x2, x3 = philox.words_of_block(tl.load(block) + tl.arange(0, BLOCKS), s0, s1, s2, s3)
    tl.store(out + tl.arange(0, BLOCKS), x0)


def test_blocks_beyond_32_bits_have_other_words():
    key, out = torch.tensor([5, 6], dtype=torch.uint32), torch.zeros(4, dtype=torch.uint32)
    first = (1 << 32) - 2
    _first_words[(1,)](key, out, torch.tensor([first]), BLOCKS=4)
    assert out.tolist() == reference.words(key, 0, first, 4)[:, 0].tolist()
    assert len(set(out.tolist())) == 4


def test_the_check_before_the_first_use_passes():
    sampler.check(sampler._fill, torch.device("cpu"))
