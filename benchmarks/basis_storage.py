"""Measure what each place for the Lanczos basis costs in accuracy, time and memory.

The same run from the same start vector on the Hessian of a trained FC5: reorthogonalised fully and
selectively, with the basis on the device, in bfloat16 and in pinned host memory, and without a
basis. Errors are against the same run with full reorthogonalisation. Time is that of a step with
its product; memory is what is planned for a chunk of steps, in vectors of D. On a CPU, pinned host
memory is the same memory, so that its time is that of copies within it.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import tyro

from jaxlimit import curvature, lanczos, planning, spectrum
from jaxlimit.lab import trained
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare places for the basis."""

    dataset: str = "digits"
    """digits or cifar10."""
    num_images: int = 10_000
    num_steps: int = 128
    product_dtype: str | None = None
    checkpoint: Path | None = None
    """Folder of the training checkpoint; default runs/benchmark-fc5-DATASET."""
    output: Path = Path("benchmarks/results")


CHUNK = 32
WAYS = {
    "full": ("full", "device"),
    "full, bfloat16": ("full", "bfloat16"),
    "full, pinned_host": ("full", "pinned_host"),
    "selective": ("selective", "device"),
    "selective, bfloat16": ("selective", "bfloat16"),
    "selective, pinned_host": ("selective", "pinned_host"),
    "none": ("none", "device"),
}


def run(matvec: Any, start: Any, num_steps: int, way: tuple[str, str]) -> tuple[Any, list[float]]:
    """Run Lanczos in one way; the measure, and the seconds a step of every chunk but the first."""
    state = lanczos.start(start, num_steps=num_steps, reorthogonalize=way[0], store=way[1])
    seconds = []
    for _ in range(0, num_steps, CHUNK):
        began = time.perf_counter()
        state = lanczos.extend(matvec, state, num_steps=CHUNK, reorthogonalize=way[0])
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - began) / CHUNK)
    return spectrum.measure_from(lanczos.finish(state), dim=start.size), seconds[1:]


def planned(dim: int, num_steps: int, way: tuple[str, str]) -> float:
    """Return the planned memory of Lanczos on the device, in vectors."""
    plan = planning.plan(
        planning.Workload(dim, 4, 0, 4 * dim, 1, 1),
        num_steps=num_steps,
        reorthogonalize=way[0],
        memory=float("1e15"),
        modes=("linearized",),
        stores=(way[1],),
    )
    names = ("Lanczos vectors", "basis", "work on the basis")
    return sum(plan.parts[name] for name in names) / 4 / dim


def main(config: Config) -> None:
    """Run every way, write, and say what each costs."""
    begin = environment()
    folder = config.checkpoint or Path("runs") / f"benchmark-fc5-{config.dataset}"
    net = trained.trained_fc5(config.dataset, config.num_images, folder.absolute())
    start = spectrum.probe(jax.random.key(2), net.weights.size)
    matvec = curvature.hessian_matvec(
        net.loss, net.params, net.batches, mode="linearized", product_dtype=config.product_dtype
    )
    content: dict[str, Any] = {
        "benchmark": "basis_storage",
        "settings": dataclasses.asdict(config) | {"output": None, "checkpoint": None},
        "dim": start.size,
        "results": {},
        "environment": begin,
    }
    for name, way in WAYS.items():
        measure, seconds = run(matvec, start, config.num_steps, way)
        reading = trained.reading(measure, net.weights, net.epsilon)
        truth = content["results"]["full"]["reading"] if content["results"] else reading
        error = trained.relative(reading, truth)
        content["results"][name] = {
            "reading": reading,
            "relative_errors": error,
            "seconds_a_step": seconds,
            "vectors_of_device_memory": planned(start.size, config.num_steps, way),
        }
        write_json(config.output / f"basis_storage_{config.dataset}.json", content)
        console.print(
            f"{name:24} relative error of λ_max {error['largest']:+.1e}, tr H {error['trace']:+.1e}"
            f", ρ* {error['ratio']:+.1e}, width {reading['width'] / reading['ratio']:.1%} of ρ*; "
            f"{min(seconds):.4f} s a step, "
            f"{content['results'][name]['vectors_of_device_memory']:.0f} vectors on the device"
        )


if __name__ == "__main__":
    main(tyro.cli(Config))
