"""How long calls take: several in turns, and the kernels of one."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
from jax.profiler import ProfileData


def time_in_turns(
    calls: dict[str, Callable[[], Any]], *, repeats: int, warm_up: bool = True
) -> dict[str, dict[str, Any]]:
    """Time several calls in turns, so that other work on the machine affects all of them.

    JAX arrays in a result are waited for.

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
