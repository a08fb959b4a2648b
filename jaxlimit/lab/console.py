"""Progress of a run: the console, and a bar for each stage."""

import time
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(markup=False)  # a path may hold brackets


class Stages:
    """Time the stages of a run and show a progress bar for each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, Any] = {}
        self._reports: dict[str, list[tuple[float, int]]] = {}

    def __enter__(self) -> "Stages":
        self._progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.stop()

    @contextmanager
    def time(self, name: str):
        """Add the time of the body to the stage `name`; print it if there are no bars."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if not console.is_terminal:
            console.print(f"{name}: {self.seconds[name]:.1f} s")

    def show(self, name: str, done: int, total: int) -> None:
        """Set the bar `name`."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)
        now = (time.perf_counter(), done)
        self._reports[name] = [*self._reports.get(name, [])[:1], now]

    def rate(self, name: str) -> float | None:
        """Return the speed of bar `name`, in steps a second from its first report to its last.

        Time before the first report, such as compilation, does not count. None without two reports.
        """
        if len(reports := self._reports.get(name, [])) < 2:
            return None
        (began, first), (ended, last) = reports
        return (last - first) / (ended - began)
