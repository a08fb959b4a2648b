"""One display of progress for a whole study."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Display:
    """A line for each number as soon as it is known, and a bar for the running step.

    Printed to standard error: standard output has the summary alone.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._tasks = quiet, {}
        self._progress: Any = None

    def __enter__(self) -> "Display":
        """Start the bars."""
        if not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeRemainingColumn as Remaining

            console = Console(stderr=True)
            columns = (
                TextColumn("{task.description:<26}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
            )
            self._progress = Progress(*columns, Remaining(), console=console, transient=True)
            self._progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """Remove the bars."""
        if self._progress is not None:
            self._progress.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say that a stage began and, if it was long, how long it took."""
        began = time.monotonic()
        if self._progress is not None:
            self._tasks[name] = self._progress.add_task(name, total=None)
        yield
        self._end(name)
        taken = time.monotonic() - began
        if taken > 10:
            self.say(f"{name}: {taken:.0f} s")

    def show(self, name: str, done: int, total: int) -> None:
        """Set the bar of a step."""
        if self._progress is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)
        if done >= total:
            self._end(name)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        if self._progress is not None:
            self._progress.console.print(line, highlight=False, markup=False)

    def _end(self, name: str) -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.update(self._tasks.pop(name), visible=False)
