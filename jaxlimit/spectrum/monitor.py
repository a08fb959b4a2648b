"""How a Lanczos run is watched, and what it leaves on disk."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxlimit._core.checks import check_count
from jaxlimit.spectrum.measure import SpectralMeasure

CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """How a Lanczos run is watched, and what it leaves on disk.

    Attributes:
        chunk: steps from one report to the next.
        stop: called with the measure so far, each time the depth has doubled, from 4 chunks on;
            True ends the run.
        on_progress: called as `on_progress(stage, steps_done, steps)` after every chunk.
        stage: a name for `on_progress`.
        checkpoint_dir: a folder for the newest checkpoint of this run alone. The same call later
            continues from it, and ends with the same bits on the same machine.
        checkpoint_every: steps a probe between checkpoints, in whole chunks; the last step always
            makes one.

    Raises:
        TypeError: if a count is no int, or `stop` or `on_progress` no function.
        ValueError: if a count is below 1.

    >>> Monitor(chunk=0)
    Traceback (most recent call last):
    ValueError: chunk must be at least 1, got 0
    """

    chunk: int = CHUNK
    stop: Callable[[SpectralMeasure], bool] | None = None
    on_progress: Callable[[str, int, int], None] | None = None
    stage: str = "spectrum"
    checkpoint_dir: str | os.PathLike | None = None
    checkpoint_every: int = 128

    def __post_init__(self) -> None:
        """Raise now what would raise during the run."""
        check_count("chunk", self.chunk)
        check_count("checkpoint_every", self.checkpoint_every)
        check_callback("stop", self.stop)
        check_callback("on_progress", self.on_progress)

    def report(self, steps_done: int, steps: int) -> None:
        """Tell how far the run has come."""
        if self.on_progress is not None:
            self.on_progress(self.stage, steps_done, steps)


def check_callback(name: str, function: Any) -> None:
    """Raise `TypeError` unless `function` is one, or None."""
    if function is not None and not callable(function):
        raise TypeError(f"{name} must be a function or None, got {function!r}")
