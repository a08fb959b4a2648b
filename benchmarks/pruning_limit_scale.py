"""Time `limits.pruning_limit` against the number of weights, and a full sort beside it.

The spectrum is that of one Lanczos run of 128 steps, whatever D: what is timed is the search for
the threshold, with the three curves of a prediction (value and both ends), by the public call,
after compilation. Memory is what XLA plans for the compiled call, in floats a weight, arguments
included. The radius found is held against a float64 sum on the host.
"""

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxlimit import limits, spectrum


@dataclasses.dataclass
class Args:
    """Settings of the benchmark."""

    dims: tuple[int, ...] = (100_000, 1_000_000, 5_000_000, 25_000_000)
    """Numbers of weights."""
    repeats: int = 7
    """Timed calls for each D, after one to compile."""
    num_steps: int = 128
    """Lanczos depth of the spectrum."""
    sort: bool = True
    """Time XLA's sort of the same weights, too, at most three times."""
    output: Path = Path("benchmarks/results/pruning_limit_scale.json")


def make_measure(num_steps: int) -> spectrum.SpectralMeasure:
    """Measure a spectrum like a trained network's: a few outliers above a bulk around zero."""
    bulk = 1e-2 * np.sinh(np.linspace(-2, 4, 4_000)) / np.sinh(4)
    eigenvalues = jnp.asarray(np.concatenate([bulk, np.geomspace(1, 20, 10)]), jnp.float32)
    return spectrum.spectral_measure(
        lambda v: eigenvalues * v, jax.random.key(0), dim=eigenvalues.size, num_steps=num_steps
    )


def seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return taken


def run(dim: int, measure: spectrum.SpectralMeasure, args: Args) -> dict[str, Any]:
    measure = dataclasses.replace(measure, dim=dim)
    # Heavy tails and many tiny weights, as l1 training leaves them.
    weights = 0.1 * jax.random.normal(jax.random.key(1), (dim,)) ** 3
    epsilon = 1e-6 * dim
    compiled = jax.jit(limits.pruning_limit).lower(measure, weights, epsilon).compile()
    memory = compiled.memory_analysis()
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else None
    first = seconds(lambda: limits.pruning_limit(measure, weights, epsilon), 1)[0]
    taken = seconds(lambda: limits.pruning_limit(measure, weights, epsilon), args.repeats)
    limit = limits.pruning_limit(measure, weights, epsilon)
    magnitudes = np.abs(np.asarray(weights))
    removed = magnitudes[magnitudes < float(limit.threshold)].astype(np.float64)
    result = {
        "dim": dim,
        "seconds": {"minimum": min(taken), "median": statistics.median(taken), "all": taken},
        "first_call_seconds": first,
        "floats_a_weight": planned and planned / 4 / dim,
        "ratio": float(limit.ratio),
        "relative_error_of_radius": float(limit.radius) / np.sqrt(np.sum(removed**2)) - 1,
    }
    if args.sort:
        sort = jax.jit(lambda w: jnp.sort(jnp.abs(w)))
        seconds(lambda: sort(weights), 1)
        result["sort_seconds"] = {"minimum": min(seconds(lambda: sort(weights), 3))}
    return result


def environment() -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg(),
        "device": jax.devices()[0].device_kind,
        "versions": {module.__name__: module.__version__ for module in (jax, np)},
    }


def main(args: Args) -> None:
    measure, start = make_measure(args.num_steps), environment()
    results = []
    for dim in args.dims:
        results.append(run(dim, measure, args))
        taken = results[-1]["seconds"]
        print(
            f"D = {dim:>12,}: minimum {taken['minimum']:.4f} s, median {taken['median']:.4f} s, "
            f"{results[-1]['floats_a_weight'] or float('nan'):.2f} floats a weight",
            flush=True,
        )
    settings = {**dataclasses.asdict(args), "output": None}
    text = {"benchmark": "pruning_limit_scale", "settings": settings, "results": results}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({**text, "environment": start}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
