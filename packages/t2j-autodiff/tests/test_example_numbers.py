"""The numbers that graphs are kept under: which they are, and whose.

How programs mix them is in `test_mixed_examples.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
from t2j_autodiff._residuals import example_numbers, store


def test_numbers_are_positive_and_differ():
    numbers = [number for number, _ in zip(example_numbers.scattered(), range(20_000), strict=False)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < 2**31 - 1 for number in numbers)


@pytest.mark.parametrize("first", [1, 2, 12345, 2**30, 2**31 - 2])
def test_numbers_of_examples(first):
    numbers = example_numbers.of_examples(first, (50, 40)).numpy()
    assert numbers.dtype == np.int32
    assert len(np.unique(numbers)) == 2000
    assert numbers.min() > 0
    assert numbers[0, 0] == first
    assert all(example_numbers.is_among(int(number), first, (50, 40)) for number in numbers.flat[::97])
    assert not example_numbers.is_among(int(example_numbers.of_examples(first, (2001,))[-1]), first, (50, 40))
    assert example_numbers.are_of_batch(numbers, (50, 40))
    for other in (numbers.T.reshape(50, 40), numbers[::-1], numbers[:1], numbers.ravel(), numbers + 1):
        assert not example_numbers.are_of_batch(other, (50, 40))


def test_a_number_that_comes_again_is_skipped():
    kept = store.GraphStore(lambda device: 100, iter([5, 5, 7]))
    shelf = store.Shelf(kept)
    assert [kept.keep(shelf, object(), {}) for _ in range(2)] == [5, 7]
