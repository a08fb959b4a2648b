"""Measure the peak memory of one product, and of a spectrum, each in its own process.

python benchmarks/peak_memory.py

What a process takes before it has made a network or read an image is told apart. Ours should take
no more than basis, operands and linearisation, whose sizes are known, and 1 GiB.
"""

import dataclasses
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from jaxlimit import spectrum
from jaxlimit.lab import peers
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment

CASES = (
    "ours, float32",
    "ours, bfloat16",
    "plain JAX",
    "PyHessian",
    "curvlinops",
    "spectrum, float32",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure memory."""

    num_images: int = 10_000
    num_steps: int = 96
    """Lanczos steps of the spectrum, with as many vectors in the basis."""
    output: Path = Path("benchmarks/results")


def peak() -> int:
    """Return the most bytes that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def num_bytes(tree: Any) -> int:
    """Count the bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def measure(case: str, config: Config) -> dict[str, Any]:
    """Run one case in a process of its own, and return its peak and what ours must hold."""
    before = peak()
    problem = peers.make_problem("fc5", config.num_images)
    tensors, held = problem.torch_vector(problem.vector), {}
    if case == "PyHessian":
        peers.pyhessian_product(peers.pyhessian_operator(problem))(tensors)
    elif case == "curvlinops":
        peers.curvlinops_product(problem)(tensors)
    elif case == "plain JAX":
        jax.block_until_ready(peers.plain_product(problem)(problem.vector))
    else:
        dtype = jnp.bfloat16 if case.endswith("bfloat16") else None
        matvec = peers.matvec(problem, mode="linearized", product_dtype=dtype)
        held = {"operands": num_bytes((problem.params, problem.batch))}
        held["linearisation"] = num_bytes(matvec)
        if case.startswith("spectrum"):
            held["basis"] = config.num_steps * problem.vector.nbytes
            spectrum.spectral_measure(
                matvec,
                jax.random.key(0),
                dim=problem.dim,
                num_steps=config.num_steps,
                reorthogonalize="full",
            )
        else:
            jax.block_until_ready(matvec(problem.vector))
    return {"before": before, "peak": peak(), "held": held}


def main(config: Config) -> None:
    """Measure every case and write."""
    context, results = multiprocessing.get_context("spawn"), {}
    for case in CASES:
        with context.Pool(1) as pool:
            results[case] = pool.apply(measure, (case, config))
        gib = {name: value / 2**30 for name, value in results[case].items() if name != "held"}
        held = sum(results[case]["held"].values()) / 2**30
        console.print(
            f"{case:18} {gib['peak']:.2f} GiB, {gib['before']:.2f} before, held {held:.2f}"
        )
    content = {
        "benchmark": "peak_memory",
        "settings": {**dataclasses.asdict(config), "output": None},
        "bytes": results,
        "environment": environment() | peers.torch_environment(),
    }
    write_json(config.output / "peak_memory.json", content)


if __name__ == "__main__":
    main(tyro.cli(Config))
