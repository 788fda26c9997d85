"""How arguments are compared with what they were: by a copy, in blocks, or by a digest where they are large."""

from __future__ import annotations

import pytest
import torch
from common import run_python
from t2j_core._run import comparing
from t2j_core._run.comparing import digest, has_same_bits

pytestmark = pytest.mark.usefixtures("nothing_escaped")


def run_with_little_room(code):
    """Run code in a process that has no room for copies of arguments."""
    run_python(code, T2J_CHECKED_BYTES="1000")


def test_an_argument_too_large_to_be_copied_is_compared_by_a_digest():
    run_with_little_room("""
        import jax, jax.numpy as jnp
        from t2j_core import Size, last_error, torch2jax

        def function(t):
            if writes:
                t.numpy()[t.shape[0] // 2] = 5
            return t + 1

        f = jax.jit(torch2jax(function, output_shapes=Size(1000)))
        writes, x = False, jnp.zeros(1000)
        for _ in range(3):
            assert (f(x) == 1).all()
        writes = True
        try:
            f(x)  # the fourth
        except Exception:
            assert "HAS BEEN CHANGED" in str(last_error())
        else:
            raise SystemExit("not noticed")
        x = jnp.zeros(1000)
        for _ in range(6):
            assert f(x)[500] == 6
        assert (x == 0).all()
    """)


def test_memory_that_the_function_gives_the_argument_hides_no_write():
    run_with_little_room("""
        import jax.numpy as jnp
        from t2j_core import Size, TensorMutationError, torch2jax

        def function(t):
            before = t.clone()
            t.numpy()[0] = 5
            t.data = before
            return t + 1

        try:
            torch2jax(function, output_shapes=Size(1000))(jnp.zeros(1000))
        except TensorMutationError as error:
            assert "HAS BEEN CHANGED" in str(error)
        else:
            raise SystemExit("not noticed")
    """)


def test_room_for_copies_is_given_back():
    run_python(
        """
        import jax.numpy as jnp
        from t2j_core import Size, torch2jax

        addresses = []
        f = torch2jax(lambda t: addresses.append(t.data_ptr()) or t + 1, output_shapes=Size(1000), arguments="check")
        x = jnp.zeros(1000)
        for _ in range(5):  # of which two have room at a time
            f(x)
        assert x.unsafe_buffer_pointer() not in addresses, "it got no copy"
        """,
        T2J_CHECKED_BYTES="8000",
    )


@pytest.mark.parametrize("size", [1, 7, 8, 9, (1 << 24) + 5])
def test_a_digest_shows_every_bit_and_every_move(size):
    numbers = lambda tensor: tuple(digest(tensor).tolist())
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    seen = {numbers(data)}
    for place in {0, size // 2, size - 1}:
        for bit in (1, 128):
            other = data.clone()
            other[place] ^= bit
            seen.add(numbers(other))
    assert len(seen) == 1 + 2 * len({0, size // 2, size - 1})
    words = torch.arange(min(size, 1000))
    assert size == 1 or numbers(words) != numbers(words.flip(0))
    assert numbers(words) == numbers(words.clone())


def test_a_large_argument_that_is_kept_is_moved():
    run_with_little_room("""
        import warnings
        import jax.numpy as jnp
        from t2j_core import Size, T2jWarning, torch2jax

        kept = []
        f = torch2jax(lambda t: kept.append(t) or t + 1, output_shapes=Size(1000))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for i in range(4):
                x = jnp.full(1000, float(i))
                assert (f(x) == i + 1).all()
                x.delete()
        others = [jnp.full(1000, 9.0) for _ in range(30)]
        assert [float(t.mean()) for t in kept] == [0, 1, 2, 3]
        assert [w.category for w in told] == [T2jWarning]
    """)


@pytest.mark.parametrize("differs_at", [None, 0, 5, 99])
def test_blocks_are_compared_as_the_whole_is(monkeypatch, differs_at):
    monkeypatch.setattr(comparing, "_BLOCK", 7)
    first, second = torch.arange(25.0), torch.arange(25.0)
    if differs_at is not None:
        second.view(torch.uint8)[differs_at] ^= 1
    same = differs_at is None
    assert comparing.has_same_bits(first, second.untyped_storage()) == same
    assert bool(comparing._are_same(*map(comparing.bytes_of, (first, second)))) == same
    assert not comparing.has_same_bits(first, torch.ones(3))
    assert not bool(comparing._are_same(first.view(torch.uint8), torch.ones(3, dtype=torch.uint8)))


def test_without_memory_for_a_digest_nothing_is_found(monkeypatch):
    x = torch.ones(8)
    before = digest(x)

    def fails(data):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(comparing, "_digest", fails)
    missing = digest(x.mul_(2))
    assert has_same_bits(missing, before)
    assert has_same_bits(before, missing)
    assert not has_same_bits(torch.ones(0), x.untyped_storage())  # a copy, which is no digest
