"""Errors of the command."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A wrong name or argument: exit code 2, one line, no traceback."""


class Terminated(BaseException):  # like KeyboardInterrupt, it is no error
    """SIGTERM."""


def near(name: str, known: Iterable[str]) -> str:
    """Return the nearest names in words, or all of them.

    >>> near("stduy", ["study", "prune"])
    "did you mean 'study'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there are {', '.join(known[:12])}" if known else "there are none"
