"""Time `limits.pruning_limit` against the number of weights, and a full sort beside it.

The spectrum is that of one Lanczos run of 128 steps, whatever D: what is timed is the search for
the threshold, with the three curves of a prediction (value and both ends), by the public call,
after compilation. Memory is what XLA plans for the compiled call, in floats a weight, arguments
included. The radius found is held against a float64 sum on the host.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxlimit import limits, spectrum
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.timing import time_in_turns


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
    """Time XLA's sort of the same weights, too."""
    output: Path = Path("benchmarks/results/pruning_limit_scale.json")


def make_measure(num_steps: int) -> spectrum.SpectralMeasure:
    """Measure a spectrum like a trained network's: a few outliers above a bulk around zero."""
    bulk = 1e-2 * np.sinh(np.linspace(-2, 4, 4_000)) / np.sinh(4)
    eigenvalues = jnp.asarray(np.concatenate([bulk, np.geomspace(1, 20, 10)]), jnp.float32)
    return spectrum.spectral_measure(
        lambda v: eigenvalues * v, jax.random.key(0), dim=eigenvalues.size, num_steps=num_steps
    )


def run(dim: int, measure: spectrum.SpectralMeasure, args: Args) -> dict[str, Any]:
    measure = dataclasses.replace(measure, dim=dim)
    # Heavy tails and many tiny weights, as l1 training leaves them.
    weights = 0.1 * jax.random.normal(jax.random.key(1), (dim,)) ** 3
    epsilon = 1e-6 * dim
    compiled = jax.jit(limits.pruning_limit).lower(measure, weights, epsilon).compile()
    memory = compiled.memory_analysis()
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else None
    calls = {"limit": lambda: limits.pruning_limit(measure, weights, epsilon)}
    if args.sort:
        sort = jax.jit(lambda w: jnp.sort(jnp.abs(w)))
        calls["sort"] = lambda: sort(weights)
    seconds = time_in_turns(calls, repeats=args.repeats)
    limit = limits.pruning_limit(measure, weights, epsilon)
    magnitudes = np.abs(np.asarray(weights))
    removed = magnitudes[magnitudes < float(limit.threshold)].astype(np.float64)
    return {
        "dim": dim,
        "seconds": seconds,
        "floats_a_weight": planned and planned / 4 / dim,
        "ratio": float(limit.ratio),
        "relative_error_of_radius": float(limit.radius) / np.sqrt(np.sum(removed**2)) - 1,
    }


def main(args: Args) -> None:
    measure, start = make_measure(args.num_steps), environment()
    results = []
    for dim in args.dims:
        results.append(run(dim, measure, args))
        taken = results[-1]["seconds"]["limit"]
        console.print(
            f"D = {dim:>12,}: minimum {taken['minimum']:.4f} s, median {taken['median']:.4f} s, "
            f"{results[-1]['floats_a_weight'] or float('nan'):.2f} floats a weight"
        )
    settings = {**dataclasses.asdict(args), "output": None}
    content = {"benchmark": "pruning_limit_scale", "settings": settings, "results": results}
    write_json(args.output, content | {"environment": start})


if __name__ == "__main__":
    main(tyro.cli(Args))
