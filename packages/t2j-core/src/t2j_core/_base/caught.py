"""Exceptions that are raised again, after the `except` block in which they were found."""

from __future__ import annotations

from .frames import hide_own_frames


class Caught:
    """Carries an exception out of an `except` block: `raise caught.taken()` raises it there.

    Inside the block `raise` would overwrite its `__context__` with the exception that is being handled. And the frame
    that raises may not refer to the exception, whose traceback refers to the frame: both would live, with all that
    the frame knows, until the garbage collector runs.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def taken(self) -> BaseException:
        """The exception, which is not held here any more."""
        error = self.error
        del self.error
        return error

    def taken_for_user(self) -> BaseException:
        """The same, with a traceback that shows no frames of t2j and JAX."""
        hide_own_frames(self.error)
        return self.taken()
