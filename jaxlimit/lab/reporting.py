"""What experiments and benchmarks share: progress bars, times, result files, the environment."""

import dataclasses
import difflib
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import jax
import numpy as np
from jax.profiler import ProfileData
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxlimit._core import files
from jaxlimit._core.files import OtherRunError as OtherRunError
from jaxlimit._core.files import read_json as read_json
from jaxlimit._core.locks import hold

console = Console()
T = TypeVar("T")


class Stages:
    """Time the stages of a run and show a bar for each that tells its progress."""

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
        """Add the time of the body to the stage `name`; tell it where no bar can be seen."""
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
        """Return what bar `name` went on by a second, from its first report to its last.

        What came before the first, compilation and an earlier run among it, does not count; None
        where there are not two.
        """
        if len(reports := self._reports.get(name, [])) < 2:
            return None
        (began, first), (ended, last) = reports
        return (last - first) / (ended - began)


def environment() -> dict[str, Any]:
    """Describe the machine and the versions that a result was made with."""
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def time_in_turns(
    calls: dict[str, Callable[[], Any]], *, repeats: int, warm_up: bool = True
) -> dict[str, dict[str, Any]]:
    """Time several calls in turns, so that whatever else the machine does falls on all of them.

    A result may hold JAX arrays, which are waited for.

    Args:
        calls: by name.
        repeats: timed calls of each.
        warm_up: call each once before, to compile.

    Returns:
        For each name the seconds of the timed calls, their `minimum`, `median` and `all`, and of
        the `first` before them (with compilation).
    """

    def seconds(call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - started

    first = {name: seconds(call) for name, call in calls.items()} if warm_up else {}
    rounds = [{name: seconds(call) for name, call in calls.items()} for _ in range(repeats)]
    times = {name: [one[name] for one in rounds] for name in calls}
    before = {name: {"first": taken} for name, taken in first.items()}
    return {
        name: before.get(name, {}) | {"minimum": min(all_), "median": median(all_), "all": all_}
        for name, all_ in times.items()
    }


def markdown_table(columns: dict[str, list[str]]) -> str:
    """Lay columns out as a table in markdown.

    >>> print(markdown_table({"D": ["10", "20"], "ρ*": ["0.5", "0.4"]}))
    | D | ρ* |
    | --- | --- |
    | 10 | 0.5 |
    | 20 | 0.4 |
    """
    rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def kernel_times(call: Callable[[], Any], *, top: int) -> list[dict[str, Any]]:
    """Profile one call and return the kernels that took the most time.

    Args:
        call: compiled before; its result is waited for.
        top: how many.

    Returns:
        `name`, `seconds` and `share` of each, the longest first; the share is that of the time in
        all kernels. On a CPU, operations stand in for kernels. Empty if the trace shows none.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        files = [str(path) for path in Path(folder).rglob("*.xplane.pb")]
        planes = [plane for file in files for plane in ProfileData.from_file(file).planes]
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    seconds: Counter[str] = Counter()
    for plane in on_device or planes:
        for line in plane.lines:
            # A device's other lines repeat its kernels by module and by step.
            if line.name.startswith("Stream" if on_device else "tf_XLA"):
                for event in line.events:
                    # A name of C++ is that of what runs the operations, counted already.
                    if "::" not in event.name:
                        seconds[event.name] += event.duration_ns * 1e-9
    whole = sum(seconds.values())
    return [
        {"name": name[:80], "seconds": taken, "share": taken / whole}
        for name, taken in seconds.most_common(top)
    ]


def plain(tree: Any) -> Any:
    """Turn results into what JSON holds; a number that is not finite becomes its name."""
    if hasattr(tree, "_asdict"):
        return plain(tree._asdict())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return plain(dataclasses.asdict(tree))
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    if isinstance(tree, jax.Array | np.ndarray | np.generic):
        return plain(np.asarray(tree).tolist())
    if isinstance(tree, float):
        return float(f"{tree:.7g}") if np.isfinite(tree) else str(tree)
    return str(tree) if isinstance(tree, Path) else tree


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make a run's folder, and have it alone while the body runs, the job's first process for all.

    Raises:
        InUseError: if another run is at work in it; says which process and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder) if jax.process_index() == 0 else nullcontext():
        yield


def write_json(path: Path, content: Any) -> None:
    """Write results as JSON with a digest, whole or not at all; `read_json` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, plain(content))


def build(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Make a dataclass of settings from what TOML or JSON hold, `plain` backwards.

    Args:
        cls: the dataclass.
        values: its fields by name.
        where: where they stand, for the messages.

    Raises:
        TypeError: if a value is not of its field's type.
        ValueError: if a name is no field; tells the nearest.
    """
    hints = get_type_hints(cls)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.0)[0]
            raise ValueError(f"{where}: unknown setting {name!r}, did you mean {near!r}?")
        fields[name] = _typed(hints[name], value)
        if fields[name] is NotImplemented:
            hint = hints[name]
            kind = hint.__name__ if isinstance(hint, type) else hint
            raise TypeError(f"{where}: {name} must be {kind}, got {value!r}")
    return cls(**fields)


def _typed(hint: Any, value: Any) -> Any:
    """Return `value` as the type `hint`, or NotImplemented if it is none."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin is UnionType:
        fits = (_typed(choice, value) for choice in choices)
        return next((fit for fit in fits if fit is not NotImplemented), NotImplemented)
    if origin is Literal:
        return value if value in choices else NotImplemented
    if origin is tuple and isinstance(value, list | tuple):
        items = tuple(_typed(choices[0], item) for item in value)
        return NotImplemented if NotImplemented in items else items
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    return value if type(value) is hint else NotImplemented


def comparison_table(columns: dict[str, Any], rows: dict[str, Callable[[Any], str]]) -> str:
    """Lay results out side by side, each a column.

    Args:
        columns: what each column shows, by its heading.
        rows: for each label how a cell is made of what its column shows.
    """
    cells = {name: [show(result) for show in rows.values()] for name, result in columns.items()}
    return markdown_table({"": list(rows)} | cells)


def replace_block(path: Path, name: str, content: str) -> None:
    """Put `content` between the markers `<!-- name:begin -->` and `<!-- name:end -->` of a file.

    Raises:
        ValueError: if the file does not hold each marker once, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = path.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"path must hold {begin} and then {end}, once each, got {path}")
    before, rest = text.split(begin)
    path.write_text(f"{before}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}")
