"""Show how the cost of a spectrum grows with D, depth, probes and examples.

python benchmarks/cost_growth.py        # about two minutes on 2 quiet cores

Each sweep changes one of the four and holds the others at FC5, 500 images, 8 steps, one probe.
Random images of CIFAR-10's shape do, since no time depends on what they show. Writes the seconds
after compilation, and a figure in which slope 1 is cost in proportion.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from jaxlimit import curvature, flatten_weights, lanczos, models, plotting, spectrum, training
from jaxlimit.lab import figures
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.timing import time_in_turns
from jaxlimit.models.mlp import FC5_WIDTHS


@dataclasses.dataclass(frozen=True)
class Config:
    """Show growth."""

    scales: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)
    """Of FC5's widths."""
    depths: tuple[int, ...] = (12, 24, 48, 96)
    probes: tuple[int, ...] = (1, 2, 4, 8)
    examples: tuple[int, ...] = (250, 500, 1000, 2000, 4000)
    num_images: int = 500
    num_steps: int = 8
    repeats: int = 2
    output: Path = Path("benchmarks/results")


def operator(num_images: int, scale: float = 1.0) -> tuple[Any, int]:
    """Make the Hessian of an untrained FC5 with its widths scaled; return it with its D."""
    net = models.create("fc5", num_classes=10, widths=tuple(int(scale * w) for w in FC5_WIDTHS))
    image_key, label_key, key = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(image_key, (1, num_images, 32, 32, 3))
    labels = jax.random.randint(label_key, (1, num_images), 0, 10)
    params = net.init(key, images[0, :1])["params"]
    matvec = curvature.hessian_matvec(
        training.make_loss(net), params, (images, labels), mode="linearized"
    )
    return matvec, flatten_weights(params)[0].size


def run(
    matvec: Any, dim: int, *, num_steps: int, num_probes: int = 1, block: bool = False,
    mode: str = "none",
) -> Callable:  # fmt: skip
    """Compile the recurrences of so many probes, in turn or as one block."""
    keys = jax.random.split(jax.random.key(1), num_probes)

    def one(matvec, key):
        start = spectrum.probe(key, dim)
        steps = partial(lanczos.tridiagonalize, num_steps=num_steps, reorthogonalize=mode)
        return steps(matvec, start).diagonal

    def every(matvec, keys):
        bound = partial(one, matvec)
        return jax.vmap(bound)(keys) if block else jax.lax.map(bound, keys)

    return partial(jax.jit(every).lower(matvec, keys).compile(), matvec, keys)


def main(config: Config) -> None:
    """Time the four sweeps, write and draw."""
    start = environment()

    def sweep(calls: dict[int, Callable]) -> dict[str, list]:
        named = {str(x): call for x, call in calls.items()}
        seconds = time_in_turns(named, repeats=config.repeats, warm_up=False)
        return {"x": list(calls), "seconds": [taken["minimum"] for taken in seconds.values()]}

    base, run_base = operator(config.num_images), partial(run, num_steps=config.num_steps)
    sized = [operator(config.num_images, scale) for scale in config.scales]
    sweeps = {
        "weights D": {"": sweep({dim: run_base(matvec, dim) for matvec, dim in sized})},
        "examples": {"": sweep({n: run_base(*operator(n)) for n in config.examples})},
        "Lanczos depth": {
            f"{mode} reorth.": sweep({m: run(*base, num_steps=m, mode=mode) for m in config.depths})
            for mode in lanczos.REORTHOGONALIZE
        },
        "probes": {
            name: sweep({p: run_base(*base, num_probes=p, block=block) for p in config.probes})
            for name, block in (("one after the other", False), ("as a block", True))
        },
    }
    content = {
        "benchmark": "cost_growth",
        "settings": {**dataclasses.asdict(config), "output": None},
        "sweeps": sweeps,
        "environment": start,
    }
    write_json(config.output / "cost_growth.json", content)
    plotting.save(figures.plot_growth(sweeps), config.output / "cost_growth.png")
    for name, lines in sweeps.items():
        for label, line in lines.items():
            slope = np.polyfit(np.log(line["x"]), np.log(line["seconds"]), 1)[0]
            console.print(f"{name} {label}: cost grows with the power {slope:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
